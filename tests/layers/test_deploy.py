"""model.deploy(): the same logits without batch norms, in networks that still export."""

import copy
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from support.networks import SHALLOW, perturbed
from timm.layers import BatchNormAct2d
from torch import nn

import acmix_zoo
from acmix_zoo import ACmix2d
from acmix_zoo.layers.deploy import DeployedACmix2d, fold

NETWORKS = {
    "acmix_resnet_pico": {},
    "acmix_swin_pico": {},
    "acmix_resnet26": {"num_classes": 7},
    "acmix_swin_t": {"num_classes": 7, "depths": (2, 2), "num_heads": (3, 6)},
}


@pytest.mark.parametrize("name", NETWORKS)
@torch.no_grad()
def test_logits_do_not_change(name: str) -> None:
    model = perturbed(name, **NETWORKS[name])
    side = model.pretrained_cfg["input_size"][1] // (1 if "pico" in name else 2)
    folded = copy.deepcopy(model).deploy()
    for size in (side, side + 32, side):  # nothing that was computed for one size is used for another
        x = torch.randn(2, model.in_chans, size, size)
        expected = model(x)
        assert (folded(x) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))
    norms = [m for m in folded.modules() if isinstance(m, torch.nn.BatchNorm2d)]
    assert not norms
    assert folded.deploy() is folded  # a second call changes nothing
    assert torch.equal(folded(x), folded(x))
    fresh = acmix_zoo.create_model(name, **NETWORKS[name]).eval()
    fresh.load_state_dict(model.state_dict())
    assert torch.equal(fresh(x), model(x))


@torch.no_grad()
def test_synchronised_norms_are_folded() -> None:
    model = nn.SyncBatchNorm.convert_sync_batchnorm(perturbed("acmix_resnet_pico"))
    x = torch.randn(2, 3, 32, 32)
    expected = model(x)
    model.deploy()
    assert not any(isinstance(module, nn.SyncBatchNorm) for module in model.modules())
    assert (model(x) - expected).abs().max() <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_logits_of_shipped_weights_do_not_change() -> None:
    for name in ("acmix_resnet_pico", "acmix_swin_pico"):
        model = acmix_zoo.create_model(name, pretrained=True).eval()
        x = torch.randn(4, model.in_chans, 32, 32)
        expected = model(x)
        assert (model.deploy()(x) - expected).abs().max() <= 1e-5 * float(expected.abs().max())


@torch.no_grad()
def test_folding_in_half_precision_rounds_once() -> None:
    """It does not matter whether a network is folded before or after it is converted."""
    before, after = (acmix_zoo.create_model("acmix_resnet_pico", pretrained=True).eval() for _ in range(2))
    before, after = before.deploy().bfloat16(), after.bfloat16().deploy()  # type: ignore[operator]
    exact = acmix_zoo.create_model("acmix_resnet_pico", pretrained=True).eval()
    x = torch.randn(16, exact.in_chans, 32, 32, generator=torch.Generator().manual_seed(0))
    errors = [(model(x.bfloat16()) - exact(x)).square().mean().sqrt() for model in (before, after)]
    assert errors[1] < 1.6 * errors[0]
    assert {tensor.dtype for tensor in after.state_dict().values()} == {torch.bfloat16}


@pytest.mark.parametrize("part", ["", "layer3", "conv1.0"])
def test_folding_needs_eval_mode(part: str) -> None:
    """If a part of the network is in training mode, nothing is folded."""
    network = acmix_zoo.create_model("acmix_resnet_pico").eval()
    network.get_submodule(part).train()
    network.fc.train()  # does not matter
    keys = list(network.state_dict())
    with pytest.raises(ValueError, match=rf"deploy: {part}\S* is in training mode.*Call model\.eval\(\)"):
        network.deploy()
    assert list(network.state_dict()) == keys


@torch.no_grad()
def test_norms_without_statistics_are_kept() -> None:
    """They normalise with those of the batch, in eval mode, too."""
    network = acmix_zoo.create_model("acmix_resnet_pico").eval()
    network.layer1[0].bn2 = nn.BatchNorm2d(network.layer1[0].bn2.num_features, track_running_stats=False).eval()
    x = torch.randn(2, 3, 32, 32)
    expected = network(x)
    torch.testing.assert_close(network.deploy()(x), expected, rtol=1e-3, atol=1e-4)
    assert isinstance(network.layer1[0].bn2, nn.BatchNorm2d) and isinstance(network.layer1[0].bn1, nn.Identity)


@pytest.mark.parametrize("paths", ["attention", "convolution"])
@pytest.mark.parametrize("name", ["acmix_resnet_pico", "acmix_swin_pico"])
@torch.no_grad()
def test_networks_with_one_path(name: str, paths: str) -> None:
    model = perturbed(name, paths=paths)
    x = torch.randn(1, model.in_chans, 32, 32)
    expected = model(x)
    assert (model.deploy()(x) - expected).abs().max() <= 1e-5 * max(1.0, float(expected.abs().max()))


def test_folded_layers_have_no_parameters() -> None:
    model = perturbed("acmix_resnet_pico").deploy()
    layers = [m for m in model.modules() if isinstance(m, DeployedACmix2d)]
    assert len(layers) == 6 and not any(list(layer.parameters()) for layer in layers)


def test_folded_networks_can_be_saved_as_safetensors(tmp_path: Path) -> None:
    model = perturbed("acmix_resnet_pico").deploy()
    safetensors.torch.save_file(model.state_dict(), tmp_path / "model.safetensors")
    assert safetensors.torch.load_file(tmp_path / "model.safetensors").keys() == model.state_dict().keys()


@torch.no_grad()
def test_a_folded_layer_takes_a_feature_map_without_a_batch_dimension() -> None:
    network = nn.Sequential(ACmix2d(8, 16, stride=2), nn.BatchNorm2d(16)).eval()
    x = torch.randn(8, 11, 9)
    expected = network(x[None])[0]
    fold(network, "0", "1")
    assert isinstance(network[0], DeployedACmix2d)
    torch.testing.assert_close(network(x), expected)


@pytest.mark.parametrize("name", [pytest.param("acmix_resnet_pico", marks=pytest.mark.slow), "acmix_swin_pico"])
def test_folded_networks_export(name: str) -> None:
    model = perturbed(name, **SHALLOW[name]).deploy()
    x = torch.randn(2, model.in_chans, 32, 32)
    program = torch.export.export(model, (x,), dynamic_shapes=({0: torch.export.Dim("b", min=2)},))
    more = torch.randn(5, model.in_chans, 32, 32)
    torch.testing.assert_close(program.module()(more), model(more), rtol=1e-4, atol=1e-4)


class _Doubled(ACmix2d):
    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return 2 * super().forward(x)


def _hooked(module: nn.Module) -> nn.Module:
    module.register_forward_hook(lambda module, args, out: 2 * out)
    return module


@pytest.mark.parametrize(
    ("layer", "norm"),
    [
        (lambda: _Doubled(8, 8), lambda: nn.BatchNorm2d(8)),
        (lambda: _hooked(ACmix2d(8, 8)), lambda: nn.BatchNorm2d(8)),
        (lambda: ACmix2d(8, 8), lambda: _hooked(nn.BatchNorm2d(8))),
        (lambda: ACmix2d(8, 8), lambda: BatchNormAct2d(8)),
        (lambda: ACmix2d(8, 8), lambda: nn.BatchNorm2d(8)),
    ],
    ids=["subclass", "hooked layer", "hooked norm", "norm with activation", "plain"],
)
@torch.no_grad()
def test_subclassed_and_hooked_modules_are_not_folded(
    layer: Callable[[], nn.Module], norm: Callable[[], nn.Module], request: pytest.FixtureRequest
) -> None:
    model = nn.Sequential(layer(), norm()).eval()
    x = torch.randn(2, 8, 12, 12)
    before = model(x)
    fold(model, "0", "1")
    assert isinstance(model[0], DeployedACmix2d) == (request.node.callspec.id == "plain")
    torch.testing.assert_close(model(x), before, rtol=1e-5, atol=1e-5)


@torch.no_grad()
def test_a_folded_layer_rejects_another_dtype() -> None:
    model = nn.Sequential(ACmix2d(8, 8), nn.BatchNorm2d(8)).eval()
    fold(model, "0", "1")
    with pytest.raises(ValueError, match=r"DeployedACmix2d: the input is torch\.float64.*x\.to\(torch\.float32\)"):
        model(torch.randn(1, 8, 9, 9).double())


def test_a_folded_layer_rejects_other_shapes() -> None:
    """The native kernel would read behind the end of the weights."""
    network = nn.Sequential(ACmix2d(32, 32), nn.BatchNorm2d(32)).eval()
    fold(network, "0", "1")
    for shape in ((1, 16, 8, 8), (1, 4096, 8, 8), (32, 8), (1, 32, 0, 8)):
        with pytest.raises(ValueError, match=r"DeployedACmix2d: the input has the shape .* Expected \(B, 32, H, W\)"):
            network(torch.randn(shape))


@pytest.mark.parametrize("options", [{}, {"stride": 2}, {"kernel_conv": 5, "kernel_att": 3}, {"heads": 8}])
@pytest.mark.parametrize("size", [(16, 9, 12), (2, 16, 9, 12)])
def test_folded_layers_state_the_same_multiplications(options: dict[str, int], size: tuple[int, ...]) -> None:
    block = nn.Sequential(ACmix2d(16, 32, **options), nn.BatchNorm2d(32)).eval()
    x = torch.zeros(size)
    before = block[0].definition_macs(x)
    fold(block, "0", "1")
    assert isinstance(block[0], DeployedACmix2d) and block[0].definition_macs(x) == before
