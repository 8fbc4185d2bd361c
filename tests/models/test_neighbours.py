"""The networks that ACmix-ResNet is compared with: the same trunk as timm's, other middle layers, and what all share.

The slow tests of this folder try everything on them that the ACmix networks support. The first test here is a quick
representative of those.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from support.networks import NEIGHBOURS, SHALLOW, perturbed
from timm.models.resnet import Bottleneck, ResNet
from torch import nn

from acmix_zoo import create_model, load_weights
from acmix_zoo.layers import ACmix2d, AugmentedConv2d, ContextAggregation, RelativeAttention
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models import Container

SMALL_CONTAINER: dict[str, Any] = {"depths": (1, 1), "embed_dims": (16, 32), "mlp_ratios": (2, 2), "heads": 2}


@pytest.mark.parametrize("name", NEIGHBOURS)
def test_interface(name: str) -> None:
    """Any size, maps of the stated sizes, a gradient for every parameter, deployment and torch.fx."""
    model = perturbed(name, **SHALLOW[name])
    x = torch.randn(2, 3, 35, 49)
    logits, maps = model(x).detach(), model.forward_intermediates(x, intermediates_only=True)
    for map_, info in zip(maps, model.feature_info, strict=True):
        assert map_.shape == (2, info["num_chs"], *(-(-side // info["reduction"]) for side in x.shape[2:]))
    deployed = copy.deepcopy(model).deploy()
    assert (deployed(x) - logits).abs().max() <= 1e-5 * float(logits.abs().max())
    torch.testing.assert_close(torch.fx.symbolic_trace(deployed)(x), deployed(x))
    assert model(x[:0]).shape == (0, 10)
    model.train()(x).square().sum().backward()
    assert [key for key, parameter in model.named_parameters() if parameter.grad is None] == []


def test_deployment_folds_what_can_be_folded() -> None:
    def norms(name: str) -> int:
        modules = perturbed(name, **SHALLOW[name]).deploy().modules()
        return sum(isinstance(module, nn.BatchNorm2d) for module in modules)

    assert [norms(name) for name in ("resnet_pico", "se_resnet_pico")] == [0, 0]
    assert norms("cbam_resnet_pico") == 2  # within timm's module, one for each block
    assert norms("series_resnet_pico") == norms("aa_resnet_pico") == norms("container_pico") == 2  # behind the layers
    assert norms("bot_resnet_pico") == 1  # only the last stage has attention


@pytest.mark.parametrize(
    ("name", "gate"), [("resnet_pico", None), ("se_resnet_pico", "se"), ("cbam_resnet_pico", "cbam")]
)
def test_same_logits_as_timm(name: str, gate: str | None) -> None:
    """Trunk and gates compute what timm's ResNet does with the same weights."""
    layers, planes = (1, 2, 1, 1), (16, 32, 16, 16)
    ours = perturbed(name, layers=layers, planes=planes, stem_width=64, small_input=False)
    theirs = ResNet(Bottleneck, layers, 10, channels=planes, block_args={"attn_layer": gate}).eval()  # type: ignore[arg-type]
    theirs.load_state_dict({key.replace(".gate.", ".se."): value for key, value in ours.state_dict().items()})
    x = torch.randn(2, 3, 64, 48)
    torch.testing.assert_close(ours(x), theirs(x), rtol=1e-5, atol=1e-5)


def middle_layers(name: str) -> list[nn.Module]:
    with torch.device("meta"):
        network = create_model(name)
    return [module for key, module in network.named_modules() if key.endswith(".conv2")]


def test_middle_layers() -> None:
    for name in ("resnet_pico", "se_resnet_pico", "cbam_resnet_pico"):
        assert all(type(layer) is nn.Conv2d and layer.kernel_size == (3, 3) for layer in middle_layers(name))
    for conv, _, attention in middle_layers("series_resnet_pico"):  # type: ignore[misc]
        assert conv.groups == conv.in_channels
        assert isinstance(attention, ACmix2d) and attention.paths == "attention"
    assert all(type(layer) is ContextAggregation for layer in middle_layers("container_pico"))
    augmented = middle_layers("aa_resnet_pico")
    assert [layer.attention.reach for layer in augmented] == [7, 7, 3, 3, 1, 1]  # type: ignore[union-attr]
    *plain, first, last = middle_layers("bot_resnet_pico")
    assert all(type(layer) is nn.Conv2d for layer in plain) and len(plain) == 4
    assert isinstance(first, nn.Sequential) and isinstance(last, nn.Sequential)
    assert [layer[0].reach for layer in (first, last)] == [3, 1] and isinstance(first[1], nn.AvgPool2d)
    assert isinstance(first[0], RelativeAttention)


def test_aa_resnet50_augments_three_stages_and_pools_the_largest_maps() -> None:
    layers = middle_layers("aa_resnet50")
    kinds = [type(layer) for layer in layers]
    assert kinds == [nn.Conv2d] * 3 + [AugmentedConv2d] * 13
    augmented = [layer for layer in layers if isinstance(layer, AugmentedConv2d)]
    assert [layer.pool for layer in augmented] == [True] * 4 + [False] * 9
    assert [layer.attention.reach for layer in augmented] == [13] * 4 + [13] * 6 + [6] * 3
    assert {layer.attention.heads for layer in augmented} == {8}


@pytest.mark.parametrize(
    ("name", "params", "gmacs"),
    [
        ("aa_resnet50", 25.8e6, 8.3 / 2),  # the paper counts two operations for each MAC
        (
            "container_light",
            21e6,
            None,
        ),  # as the released code states; the paper has 20M and 3.2G, see the documentation
    ],
)
def test_published_costs(name: str, params: float, gmacs: float | None) -> None:
    with torch.device("meta"):
        found = complexity(create_model(name))
    assert found.params == pytest.approx(params, rel=0.02)
    assert gmacs is None or found.macs / 1e9 == pytest.approx(gmacs, rel=0.02)


def test_bot_and_aa_keep_their_parameters_with_another_output_stride() -> None:
    for name in ("bot_resnet_pico", "aa_resnet_pico"):
        shapes = [
            {key: tuple(value.shape) for key, value in create_model(name, output_stride=side).state_dict().items()}
            for side in (8, 32)
        ]
        differing = {key for key in shapes[0] if shapes[0][key] != shapes[1][key]}
        assert differing <= ({"layer3.0.conv2.0.rows", "layer3.0.conv2.0.columns"} if "bot" in name else set())


@pytest.mark.parametrize("name", ["bot_resnet_pico", "aa_resnet_pico"])
class TestTablesOfRelativePositions:
    @pytest.mark.parametrize("other", [{"img_size": (64, 48)}, {"img_size": 16}, {"output_stride": 8}])
    def test_weights_load_into_tables_of_a_different_size(
        self, tmp_path: Path, name: str, other: dict[str, Any]
    ) -> None:
        model = perturbed(name)
        again = create_model(name, **other).eval()
        load_weights(again, model.state_dict())
        image = torch.randn(1, 3, 16, 16)  # within the reach of all tables
        if "output_stride" not in other:
            torch.testing.assert_close(again(image), model(image))
        torch.save(model.state_dict(), tmp_path / "weights.pth")
        file = {"file": tmp_path / "weights.pth"}
        by_timm = timm.create_model(name, pretrained=True, pretrained_cfg_overlay=file, **other).eval()
        torch.testing.assert_close(by_timm(image), again(image))

    def test_timm_reloads_what_it_saved(self, tmp_path: Path, name: str) -> None:
        """timm writes the size of the images as a list."""
        model = timm.create_model(name, num_classes=3, img_size=48).eval()
        timm.models.save_for_hf(model, tmp_path)
        again = timm.create_model(f"local-dir:{tmp_path}", pretrained=True).eval()
        image = torch.randn(1, 3, 64, 64)
        torch.testing.assert_close(again(image), model(image))


def test_container_has_attention_in_the_last_stage_only() -> None:
    network = Container(**SMALL_CONTAINER, num_classes=5)
    dynamic = [layer.dynamic for layer in network.modules() if isinstance(layer, ContextAggregation)]
    assert dynamic == [False, True]
    assert [tuple(layer.conv.kernel_size) for layer in network.modules() if isinstance(layer, ContextAggregation)] == [
        (5, 5)
    ] * 2


def test_container_at_any_size() -> None:
    network = Container(**SMALL_CONTAINER, num_classes=5)
    x = torch.randn(2, 3, 35, 49)
    maps = network.eval().forward_intermediates(x, intermediates_only=True)
    assert [tuple(map_.shape) for map_ in maps] == [(2, 16, 9, 13), (2, 32, 5, 7)]
    assert torch.fx.symbolic_trace(network)(x).shape == (2, 5)
    assert network(x[:0]).shape == (0, 5)
    network.train()(x).square().sum().backward()
    assert [key for key, parameter in network.named_parameters() if parameter.grad is None] == []


@pytest.mark.slow
def test_features_of_container_light() -> None:
    features = timm.create_model("container_light", features_only=True, depths=(1, 1, 1, 1)).eval()
    with torch.no_grad():
        maps = features(torch.randn(1, 3, 64, 64))
    assert [tuple(map_.shape[1:]) for map_ in maps] == [(64, 16, 16), (128, 8, 8), (320, 4, 4), (512, 2, 2)]
