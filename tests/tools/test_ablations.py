"""The ablations: what each changes in a network, and what stays as it is during training."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d
from tools.ablations import ABLATIONS, PerHeadACmix2d, acmix_layers, build

SHALLOW: dict[str, Any] = {"layers": (1, 1), "planes": (16, 32), "num_classes": 3}


def step(network: nn.Module) -> None:
    """Train one step of SGD on random images."""
    optimizer = torch.optim.SGD([p for p in network.parameters() if p.requires_grad], lr=0.1)
    x, y = torch.randn(4, 3, 32, 32), torch.arange(4) % 3
    nn.functional.cross_entropy(network.train()(x), y).backward()
    optimizer.step()


def trained(ablation: str) -> tuple[nn.Module, dict[str, Tensor]]:
    """Return a network after one step, and its parameters before. All blocks matter from the start."""
    torch.manual_seed(0)
    network = build("acmix_resnet_pico", ablation, zero_init_last=False, **SHALLOW)
    before = {key: value.detach().clone() for key, value in network.named_parameters()}
    step(network)
    return network, before


@pytest.mark.parametrize(
    ("ablation", "alpha", "beta"),
    [("none", 0.5, 0.5), ("mix-one", 1, 1), ("mix-alpha", 0.5, 1), ("mix-beta", 1, 0.5), ("mix-heads", 0.5, 0.5)],
)
def test_mixing(ablation: str, alpha: float, beta: float) -> None:
    """alpha and beta start with these values, and those that are fixed at one stay there."""
    network, before = trained(ablation)
    shape = (4,) if ablation == "mix-heads" else (1,)
    for name, start in (("alpha", alpha), ("beta", beta)):
        keys = [key for key in before if key.endswith(name)]
        assert len(keys) == 2
        for key in keys:
            after = network.get_parameter(key)
            assert before[key].shape == shape and (before[key] == start).all()
            assert torch.equal(after, before[key]) == (start == 1), key


def test_nothing_else_is_frozen() -> None:
    frozen = {
        key: {k.rpartition(".")[2] for k, p in build("acmix_resnet_pico", key, **SHALLOW).named_parameters()
              if not p.requires_grad}
        for key in ABLATIONS
    }  # fmt: skip
    some = {
        "mix-one": {"alpha", "beta"},
        "mix-alpha": {"beta"},
        "mix-beta": {"alpha"},
        "shift-frozen": {"shift_weight"},
    }
    assert frozen == {key: some.get(key, set()) for key in ABLATIONS}


def test_every_parameter_that_is_learned_has_a_gradient() -> None:
    for ablation in ABLATIONS:
        network, _ = trained(ablation)
        assert [key for key, p in network.named_parameters() if p.requires_grad and p.grad is None] == [], ablation


@pytest.mark.parametrize(("ablation", "starts_as_shifts", "moves"), [
    ("none", True, True), ("shift-frozen", True, False), ("shift-random", False, True),
])  # fmt: skip
def test_shift_kernels(ablation: str, starts_as_shifts: bool, moves: bool) -> None:
    network, before = trained(ablation)
    keys = [key for key in before if key.endswith("shift_weight")]
    assert len(keys) == 2
    for key in keys:
        shifts = torch.eye(9).expand(len(before[key]), -1, -1)
        assert torch.equal(before[key].flatten(2), shifts) == starts_as_shifts
        assert torch.equal(network.get_parameter(key), before[key]) != moves
        if ablation == "shift-random":
            assert before[key].abs().max() <= 1 / 9  # 9 inputs with 9 taps
            assert before[key].std() == pytest.approx(3**-0.5 / 9, rel=0.1)


@pytest.mark.parametrize(("ablation", "kernel"), [("att-3", 3), ("att-5", 5), ("none", 7)])
def test_attention_windows(ablation: str, kernel: int) -> None:
    assert {layer.kernel_att for layer in acmix_layers(build("acmix_resnet_pico", ablation, **SHALLOW))} == {kernel}


def by_paths(layer: PerHeadACmix2d, x: Tensor) -> Tensor:
    """Compute a layer from two layers with one path each, which share its parameters."""
    sizes: dict[str, Any] = {"heads": layer.heads, "stride": layer.stride, "kernel_att": layer.kernel_att}
    parts = []
    for name in ("attention", "convolution"):
        path = ACmix2d(layer.in_channels, layer.out_channels, paths=name, **sizes).to(x.dtype)
        state = {key: value for key, value in layer.named_parameters() if key in path.state_dict()}
        parts.append(torch.func.functional_call(path, state, (x,)))
    width = layer.out_channels // layer.heads
    alpha = torch.stack([layer.alpha[c // width] for c in range(layer.out_channels)])
    beta = torch.stack([layer.beta[c % layer.heads] for c in range(layer.out_channels)])
    return alpha.view(-1, 1, 1) * parts[0] + beta.view(-1, 1, 1) * parts[1]


@pytest.mark.parametrize("heads", [2, 8])  # the kernels of the convolution are composed up to 4 heads
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("stride", [1, 2])
def test_per_head_factors_scale_the_channels_of_each_path(heads: int, dtype: torch.dtype, stride: int) -> None:
    torch.manual_seed(0)
    plain = ACmix2d(6, 16, stride=stride, heads=heads, kernel_att=3).to(dtype)
    layer = PerHeadACmix2d(plain).to(dtype)
    x = torch.randn(2, 6, 7, 9, dtype=dtype, requires_grad=True)
    tolerance = {"rtol": 1e-4, "atol": 1e-5} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-11}
    torch.testing.assert_close(layer(x), plain(x), **tolerance)
    for factor in (layer.alpha, layer.beta):
        nn.init.uniform_(factor, 0.2, 2)
    found, expected = layer(x), by_paths(layer, x)
    torch.testing.assert_close(found, expected, **tolerance)
    inputs = [x, layer.alpha, layer.beta, layer.qkv.weight, layer.shift_conv.shift_weight, layer.shift_conv.fc_weight]
    gradients = (torch.autograd.grad(out.square().sum(), inputs) for out in (found, expected))
    for ours, theirs in zip(*gradients, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=10 * tolerance["rtol"], atol=100 * tolerance["atol"])


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown ablation 'no-mix'\. Use one of none, mix-one"):
        build("acmix_resnet_pico", "no-mix")
    with pytest.raises(ValueError, match=r"expected a layer with both paths, got paths='attention'"):
        PerHeadACmix2d(ACmix2d(8, 8, paths="attention"))
