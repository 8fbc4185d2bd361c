"""LoRA, quantisation, pruning and weight norm take effect in every layer.

They wrap or replace submodules such as `layer.qkv`. The fast paths, which read weights directly, must not bypass them.
"""

from __future__ import annotations

import copy

import pytest
import timm
import torch
from support.layer_cases import LAYERS, layer_and_inputs
from torch import Tensor, nn
from torch.nn.utils import parametrizations, prune

import acmix_zoo  # noqa: F401 (registers the networks)
from acmix_zoo.layers import ACmix2d, WindowACmix
from acmix_zoo.layers.deploy import DeployedACmix2d
from acmix_zoo.layers.submodule_use import is_plain


class LoRA(nn.Module):
    """A Linear or 1×1 convolution with a low-rank term, as wrapped by peft: `weight` is still the base weight."""

    def __init__(self, base: nn.Module, rank: int = 2) -> None:
        super().__init__()
        self.base = base
        out, inputs = base.weight.shape[:2]
        self.down = nn.Parameter(torch.randn(rank, inputs, dtype=base.weight.dtype))
        self.up = nn.Parameter(torch.randn(out, rank, dtype=base.weight.dtype) / 4)

    @property
    def weight(self) -> Tensor:
        return self.base.weight

    @property
    def bias(self) -> Tensor:
        return self.base.bias

    def forward(self, x: Tensor) -> Tensor:
        term = self.up @ self.down
        if isinstance(self.base, nn.Linear):
            return self.base(x) + x @ term.T
        return self.base(x) + torch.einsum("oi,bi...->bo...", term, x)

    def merge(self) -> nn.Module:
        with torch.no_grad():
            self.base.weight += (self.up @ self.down).view_as(self.base.weight)
        return self.base


PLACES = [
    (kind, name)
    for kind in LAYERS
    for name, module in LAYERS[kind][0]().named_modules()
    if isinstance(module, nn.Linear) or (isinstance(module, nn.Conv2d) and module.kernel_size == (1, 1))
]


@pytest.mark.parametrize(("kind", "name"), PLACES)
def test_lora_is_applied(kind: str, name: str) -> None:
    """A low-rank term added to any projection gives the same result as adding it to the weight."""
    layer, inputs = layer_and_inputs(kind)
    before = layer(*inputs)
    layer.set_submodule(name, wrapped := LoRA(layer.get_submodule(name)))
    out = layer(*inputs)
    grads = torch.autograd.grad(out.square().sum(), [wrapped.up, wrapped.down])
    assert all(grad.abs().max() > 0 for grad in grads)
    layer.set_submodule(name, wrapped.merge())
    torch.testing.assert_close(out, layer(*inputs), rtol=1e-10, atol=1e-10)
    assert (out - before).abs().max() > 1e-6


@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
def test_lora_under_autocast(paths: str) -> None:
    _, inputs = layer_and_inputs("acmix2d", torch.float32)
    layer = ACmix2d(8, 16, paths=paths)
    layer.qkv = LoRA(layer.qkv)
    with torch.autocast("cpu", torch.bfloat16):
        out = layer(*inputs)
    assert out.dtype == torch.bfloat16
    rounded = copy.deepcopy(layer).to(torch.bfloat16)(inputs[0].to(torch.bfloat16)).float()
    layer.qkv = layer.qkv.merge()
    exact = layer(*inputs)
    # Autocast rounds the same values that a conversion to bfloat16 rounds, or fewer.
    assert (out.float() - exact).abs().max() < 2 * (rounded - exact).abs().max() < 0.2 * exact.abs().max()


@pytest.mark.parametrize(("name", "weight"), [("qkv", "weight"), ("shift_conv", "fc_weight")])
def test_pruning_holds_while_training(name: str, weight: str) -> None:
    layer, inputs = layer_and_inputs("acmix2d")
    prune.random_unstructured(module := layer.get_submodule(name), weight, 0.5)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    before = layer(*inputs).detach()
    for _ in range(2):  # the second step failed while the pruned weight was not recomputed
        optimizer.zero_grad()
        layer(*inputs).square().mean().backward()
        optimizer.step()
    masked = getattr(module, f"{weight}_mask") == 0
    after = layer(*inputs)
    assert (getattr(module, weight)[masked] == 0).all() and not torch.equal(after, before)
    prune.remove(module, weight)
    torch.testing.assert_close(layer(*inputs), after, rtol=1e-10, atol=1e-10)


def test_weight_norm_and_dynamic_quantisation() -> None:
    layer, inputs = layer_and_inputs("acmix2d", torch.float32)
    expected = layer(*inputs).detach()
    parametrizations.weight_norm(normed := copy.deepcopy(layer).qkv)
    assert not is_plain(normed, nn.Linear)
    normed_layer = copy.deepcopy(layer)
    parametrizations.weight_norm(normed_layer.qkv)
    torch.testing.assert_close(normed_layer(*inputs), expected, rtol=1e-4, atol=1e-5)
    normed_layer(*inputs).square().sum().backward()
    assert normed_layer.qkv.parametrizations.weight.original0.grad is not None

    quantised = torch.ao.quantization.quantize_dynamic(layer, {nn.Linear}, dtype=torch.qint8)
    # Weights of 8 bits: half a step of 1/127 of the largest one, and as much for the input, over 8 inputs.
    assert 0 < (quantised(*inputs) - expected).abs().max() < 0.1 * expected.abs().max()


@pytest.mark.parametrize(("name", "place"), [("acmix_resnet_pico", "qkv"), ("acmix_swin_pico", "proj")])
def test_deploying_keeps_wrapped_projections(name: str, place: str) -> None:
    """Wrapped modules are not folded; everything else is."""
    model = timm.create_model(name).eval()
    layers = [m for m in model.modules() if isinstance(m, ACmix2d | WindowACmix)]
    setattr(layers[0], place, LoRA(getattr(layers[0], place)))
    x = torch.randn(2, *model.pretrained_cfg["input_size"])
    with torch.no_grad():
        expected = model(x)
        deployed = copy.deepcopy(model).deploy()
        torch.testing.assert_close(deployed(x), expected, rtol=1e-4, atol=1e-4)
    if name == "acmix_resnet_pico":
        assert sum(isinstance(m, DeployedACmix2d) for m in deployed.modules()) == len(layers) - 1
