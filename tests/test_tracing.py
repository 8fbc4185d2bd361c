"""Graphs that other tools record: torch.jit.trace, torch.fx, torch.export and ONNX give what the network gives."""

import copy
import warnings

import pytest
import torch
from torch import Tensor, nn

import acmix_zoo

NETWORKS = ("acmix_resnet_pico", "acmix_swin_pico", "acmix_pvt_pico", "acmix_san_pico")
# (B, H, W): the traced one, another batch, and maps that are larger, odd, oblong and smaller than the attention window.
TRACED, SIZES = (2, 32, 32), [(2, 32, 32), (1, 32, 32), (3, 64, 48), (2, 33, 47), (1, 8, 8)]


def perturbed(name: str, **kwargs: object) -> nn.Module:
    """A network whose blocks and paths all count; at the start, zero-initialised norms and silent paths hide faults."""
    torch.manual_seed(0)
    model = acmix_zoo.create_model(name, **kwargs)
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            nn.init.normal_(module.running_mean, std=0.2)
            nn.init.uniform_(module.running_var, 0.5, 2)
            nn.init.uniform_(module.weight, 0.5, 1.5)
            nn.init.normal_(module.bias, std=0.2)
    for key, parameter in model.named_parameters():
        if key.endswith(("alpha", "beta", "weight", "table")) and "bn" not in key:
            parameter.data += 0.3 * parameter.std(correction=0) * torch.randn_like(parameter)
    return model.eval()


def images(size: tuple[int, ...]) -> Tensor:
    return torch.randn(size[0], 3, *size[1:])


def error(actual: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the scale of the logits."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def traced(model: nn.Module, x: Tensor) -> torch.jit.ScriptModule:
    """`torch.jit.trace`, where a size that becomes a constant is an error and not a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        warnings.simplefilter("error", torch.jit.TracerWarning)
        return torch.jit.trace(model, x)  # type: ignore[no-any-return]


@pytest.mark.parametrize("name", NETWORKS)
def test_jit_trace_at_other_sizes(name: str) -> None:
    model = perturbed(name)
    graph = traced(model, images(TRACED))
    for size in SIZES:
        x = images(size)
        assert error(graph(x), model(x)) < 1e-5, size


@pytest.mark.parametrize("kwargs", [{"stride": 2}, {"dilation": 2}, {"paths": "attention"}, {"paths": "convolution"}])
def test_jit_trace_of_the_layer(kwargs: dict[str, object]) -> None:
    layer = acmix_zoo.ACmix2d(4, 8, **kwargs)  # type: ignore[arg-type]
    graph = traced(layer, torch.randn(2, 4, 20, 24))
    for size in [(1, 3, 3), (3, 33, 17), (1, 1, 1)]:
        x = torch.randn(size[0], 4, *size[1:], requires_grad=True)
        expected, found = layer(x), graph(x)
        assert error(found, expected) < 1e-5
        gradients = (torch.autograd.grad(y.square().sum(), [x, layer.qkv.weight]) for y in (expected, found))
        for right, wrong in zip(*gradients, strict=True):
            assert error(wrong, right) < 1e-4


def test_a_trace_leaves_nothing_behind() -> None:
    """Sizes are tensors while a trace is recorded; a real call of the same size must not meet them."""
    layer, x = acmix_zoo.ACmix2d(4, 8).eval(), torch.randn(1, 4, 9, 11)
    traced(layer, x)
    expected = copy.deepcopy(layer)(x)
    assert torch.equal(layer(x), expected)
