"""The contributions of both paths: they sum to the score, and they go to the path and the place that matter."""

from typing import Any

import numpy as np
import pytest
import timm
import torch
from support.explained import FAMILIES, explained_network, smooth_image
from torch import Tensor, nn
from torch.func import functional_call

from acmix_zoo import ACmix2d, swap_conv3x3
from acmix_zoo.explain import contributions, grad_cam
from acmix_zoo.explain.contributions import Contributions, spread
from acmix_zoo.layers import ReducedACmix

SLOW = pytest.mark.slow
QUICK_RESNET = ["acmix_resnet_pico", *(pytest.param(name, marks=SLOW) for name in FAMILIES[1:])]


def checked_contributions(model: nn.Module, image: Tensor, target: int) -> Contributions:
    """Return the contributions, after asserting that they sum to the logit with a small error of the integration."""
    found = contributions(model, image, target)
    score = float(model(image)[0, target].detach())
    assert found.scores.both == pytest.approx(score, abs=1e-12)
    parts = [part.total for layer in found.layers for part in (layer.attention, layer.convolution) if part]
    assert found.rest + sum(parts) == pytest.approx(score, abs=0.01 * sum(map(abs, parts)))
    assert found.rest + sum(parts) + found.error == pytest.approx(score, abs=1e-12)
    return found


class TestParts:
    @pytest.mark.parametrize("name", FAMILIES)
    def test_sum_to_the_score(self, name: str) -> None:
        checked_contributions(explained_network(name), smooth_image(), 3)

    @pytest.mark.parametrize("name", QUICK_RESNET)
    def test_of_a_layer_are_the_integrals_over_its_alpha_and_beta(self, name: str) -> None:
        """Computed here from the derivatives by the parameters themselves, without looking into the network."""
        model, image = explained_network(name), smooth_image()
        found = contributions(model, image, 0)
        factors = {key: p.detach() for key, p in model.named_parameters() if key.endswith((".alpha", ".beta"))}
        expected = dict.fromkeys(factors, 0.0)
        nodes, weights = np.polynomial.legendre.leggauss(found.points)
        for t, weight in zip((nodes + 1) / 2, weights / 2, strict=True):
            scaled = {key: (t * value).requires_grad_() for key, value in factors.items()}
            functional_call(model, scaled, image)[0, 0].backward()
            for key, value in factors.items():
                expected[key] += weight * float(scaled[key].grad * value)  # type: ignore[operator]
        for layer in found.layers:
            assert layer.attention and layer.convolution
            assert layer.attention.total == pytest.approx(expected[f"{layer.name}.alpha"], abs=1e-9)
            assert layer.convolution.total == pytest.approx(expected[f"{layer.name}.beta"], abs=1e-9)

    @pytest.mark.parametrize("name", ["acmix_pvt_pico", pytest.param("acmix_swin_pico", marks=SLOW)])
    def test_are_exact_if_the_network_is_smooth(self, name: str) -> None:
        """The stem has rectifiers, but it comes before the layers. Behind them is nothing but GELU."""
        found = contributions(explained_network(name), smooth_image(), 1)
        assert abs(found.error) < 1e-6 * abs(found.attention)

    @pytest.mark.parametrize("name", ["vgg", pytest.param("resnet18", marks=SLOW)])
    def test_sum_to_the_score_of_a_network_with_swapped_layers(self, name: str) -> None:
        """In VGG, a rectifier that works in place follows each layer."""
        torch.manual_seed(0)
        model = _small_vgg() if name == "vgg" else timm.create_model(name, num_classes=4)
        swap_conv3x3(model, lambda _, conv: 3 < conv.in_channels <= 64, input_size=(3, 24, 24))
        assert len(checked_contributions(model.double().eval(), smooth_image(), 2).layers) > 1

    def test_sum_to_the_score_with_a_class_token(self) -> None:
        model = explained_network("acmix_pvt_pico", global_pool="token")
        found = checked_contributions(model, smooth_image(), 0)
        last = found.layers[-1]
        assert last.attention and last.convolution
        # The classifier only reads the class token, which no convolution of the last layer reaches.
        assert last.attention.tokens != 0 and not last.attention.positions.any() and last.convolution.total == 0
        assert found.tokens("attention") == sum(layer.attention.tokens for layer in found.layers if layer.attention)

    @pytest.mark.parametrize("path", ["attention", "convolution"])
    def test_a_network_with_one_path_has_no_contributions_of_the_other(self, path: str) -> None:
        model = explained_network("acmix_pvt_pico", paths=path)
        found = checked_contributions(model, smooth_image(), 0)
        other = {"attention": "convolution", "convolution": "attention"}[path]
        assert getattr(found, path) != 0 and getattr(found, other) == 0
        assert all(getattr(layer, other) is None and layer.alpha is None for layer in found.layers)
        assert getattr(found.scores, path) == pytest.approx(found.scores.both)
        assert getattr(found.scores, other) == pytest.approx(found.scores.neither)

    @pytest.mark.parametrize("name", QUICK_RESNET)
    def test_a_path_whose_factor_is_zero_contributes_nothing(self, name: str) -> None:
        model = explained_network(name)
        for key, parameter in model.named_parameters():
            if key.endswith(".beta"):
                nn.init.zeros_(parameter)
        found = contributions(model, smooth_image(), 0)
        assert found.attention != 0
        for layer in found.layers:
            assert layer.beta == 0 and layer.convolution and layer.convolution.size == 0
            assert not layer.convolution.positions.any() and layer.convolution.tokens == 0
        assert found.scores.attention == pytest.approx(found.scores.both, abs=1e-12)

    def test_of_layers_called_with_keywords_are_the_same(self, monkeypatch: pytest.MonkeyPatch) -> None:
        model, image = explained_network("acmix_pvt_pico"), smooth_image()
        expected, cam = contributions(model, image, 0), grad_cam(model, image, 0)
        call = nn.Module.__call__

        def by_keyword(module: nn.Module, *args: Any, **kwargs: Any) -> Any:
            if isinstance(module, ReducedACmix):
                args, kwargs = (), dict(zip(("x", "size"), args, strict=True), **kwargs)
            return call(module, *args, **kwargs)

        monkeypatch.setattr(nn.Module, "__call__", by_keyword)
        found = contributions(model, image, 0)
        assert (found.attention, found.convolution) == (expected.attention, expected.convolution)
        assert cam is not None and torch.equal(cam, grad_cam(model, image, 0))  # type: ignore[arg-type]


def _small_vgg() -> nn.Module:
    def block(inputs: int, outputs: int) -> list[nn.Module]:
        return [nn.Conv2d(inputs, outputs, 3, padding=1), nn.ReLU(inplace=True), nn.MaxPool2d(2)]

    layers = [*block(3, 16), *block(16, 24), *block(24, 24)]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(24, 4))


class TestPlantedEvidence:
    """Networks built by hand, in which only one path can see the object."""

    @staticmethod
    def network(path: str) -> nn.Module:
        """Return a network with a logit that is the brightness which one path of an ACmix layer sees, rectified.

        Attention is uniform over 3×3 positions and reads v. The convolution reads q, which the attention does not see
        because k is zero. The other path is on, and what it returns is constant.
        """
        layer = ACmix2d(1, 1, heads=1, kernel_att=3)
        with torch.no_grad():
            for parameter in layer.parameters():
                parameter.zero_()
            layer.alpha.fill_(0.7), layer.beta.fill_(0.4)
            layer.qkv.bias.copy_(torch.tensor([0.0, 0.0, 1.0]))  # q, k and v
            layer.qkv.weight[0 if path == "convolution" else 2] = 1.0
            layer.shift_conv.fc_weight[4, 0] = 1.0  # the tap in the centre, of q
            layer.shift_conv.shift_weight[0, 4, 1, 1] = 1.0
        head = nn.Linear(1, 2, bias=False)
        nn.init.constant_(head.weight, 5.0)
        return nn.Sequential(layer, nn.ReLU(inplace=True), nn.AvgPool2d(8), nn.Flatten(), head).double()

    @pytest.mark.parametrize(("path", "other"), [("attention", "convolution"), ("convolution", "attention")])
    def test_is_found_in_the_path_that_sees_it_and_where_it_is(self, path: str, other: str) -> None:
        model, image = self.network(path), torch.zeros(1, 1, 8, 8, dtype=torch.float64)
        before = contributions(model, image, 0)
        image[..., 2, 5] = 3.0
        found = contributions(model, image, 0)
        gained = getattr(found, path) - getattr(before, path)
        assert gained == pytest.approx(float(model(image)[0, 0].detach()) - before.scores.both) and gained > 0.01
        assert getattr(found, other) == pytest.approx(getattr(before, other))
        (layer,), (empty,) = found.layers, before.layers
        change = getattr(layer, path).positions - getattr(empty, path).positions
        rows, columns = change.abs().gt(1e-12).nonzero(as_tuple=True)
        box = (rows.min(), rows.max(), columns.min(), columns.max())
        assert box == ((1, 3, 4, 6) if path == "attention" else (2, 2, 5, 5))


class TestSpread:
    @pytest.mark.parametrize("size", [(8, 8), (32, 20), (9, 7)])
    def test_keeps_the_sum_and_the_place(self, size: tuple[int, int]) -> None:
        values = torch.zeros(4, 5, dtype=torch.float64)
        values[1, 3], values[3, 0] = 2.0, -0.5
        enlarged = spread(values, size)
        assert enlarged.shape == size and float(enlarged.sum()) == pytest.approx(1.5)
        row, column = divmod(int(enlarged.argmax()), size[1])
        assert int((row + 0.5) * 4 / size[0]) == 1 and int((column + 0.5) * 5 / size[1]) == 3

    def test_the_picture_sums_to_the_contribution(self) -> None:
        found = contributions(explained_network("acmix_pvt_pico"), smooth_image(), 0)
        for path in ("attention", "convolution"):
            assert float(found.picture(path, (40, 32)).sum()) == pytest.approx(getattr(found, path))


class TestTheModel:
    def test_is_not_changed(self) -> None:
        model = explained_network("acmix_resnet_pico").train()
        model.layer1.eval()  # type: ignore[union-attr]
        next(model.parameters()).requires_grad_(False)
        state = {key: value.clone() for key, value in model.state_dict().items()}
        modes = [module.training for module in model.modules()]
        trained = [parameter.requires_grad for parameter in model.parameters()]
        contributions(model, smooth_image(), 0)
        assert all(torch.equal(value, state[key]) for key, value in model.state_dict().items())
        assert [module.training for module in model.modules()] == modes
        assert [parameter.requires_grad for parameter in model.parameters()] == trained
        assert all(parameter.grad is None for parameter in model.parameters())
        assert not any(module._forward_hooks for module in model.modules())

    def test_that_cannot_be_explained_is_rejected_with_advice(self) -> None:
        image = smooth_image()
        with pytest.raises(ValueError, match=r"no ACmix layers.*swap_conv3x3"):
            contributions(nn.Linear(3, 2), image, 0)
        model = explained_network("acmix_resnet_pico")
        with pytest.raises(ValueError, match=r"no class 10\. Expected a number from 0 to 9"):
            contributions(model, image, 10)
        with pytest.raises(ValueError, match=r"expected one image.*\(2, 3, 24, 24\)"):
            contributions(model, image.expand(2, -1, -1, -1), 0)
        with pytest.raises(ValueError, match="logits of classes"):
            contributions(explained_network("acmix_resnet_pico", num_classes=0, global_pool=""), image, 0)
        with pytest.raises(ValueError, match=r"folded for inference.*do not call deploy"):
            contributions(model.deploy(), image, 0)  # type: ignore[operator]
        with pytest.raises(ValueError, match="folded for inference"):
            contributions(explained_network("acmix_swin_pico").deploy(), image, 0)  # type: ignore[operator]
