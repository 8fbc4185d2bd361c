"""Outputs and gradients of functions and layers, to be compared with those of a reference."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.layers.reduced_acmix import ReducedACmix


def randomize(layer: nn.Module, std: float = 0.3) -> nn.Module:
    """Draw all parameters at random, because many layers compute something simpler at initialisation."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=std)
    return layer


def output_gradient(out: Tensor) -> Tensor:
    """Return a fixed gradient in the shape of `out` that is different for every element."""
    return torch.linspace(-3, 3, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)


def function_gradients(function: Callable[..., Tensor], tensors: Sequence[Tensor]) -> list[Tensor]:
    """Return the output of `function(*tensors)`, followed by the gradient of each tensor."""
    leaves = [t.detach().clone().requires_grad_() for t in tensors]
    out = function(*leaves)
    return [out.detach(), *torch.autograd.grad(out, leaves, output_gradient(out))]


def layer_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output of `layer(x)`, the gradient of x, and the gradient of each parameter."""
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], output_gradient(out))]


def assert_all_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-10) -> None:
    """Assert that the tensors are equal in shape, and in value up to `tolerance` times the largest expected value."""
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape
        assert (a.cpu() - e.cpu()).abs().max() <= tolerance * max(float(e.abs().max()), 1.0)


class OneInput(nn.Module):
    """PVT's layer for maps of one size, as a module with a single input like the other layers."""

    def __init__(self, layer: ReducedACmix, size: tuple[int, int]) -> None:
        super().__init__()
        self.layer, self.size = layer, size

    def forward(self, x: Tensor) -> Tensor:
        out: Tensor = self.layer(x, self.size)
        return out


def relative(actual: Tensor, expected: Tensor) -> float:
    """Return the largest difference, relative to the largest expected value."""
    return float((actual - expected).detach().abs().max() / expected.detach().abs().max())


def named_gradients(function: Callable[[Tensor], Tensor], x: Tensor, layer: nn.Module) -> tuple[Tensor, dict[str, Any]]:
    """Return the output of `function(x)`, which runs a layer, and the gradients of x and of the layer's parameters by
    their names, None for unused ones."""
    x = x.detach().clone().requires_grad_()
    out = function(x)
    seed = torch.linspace(0, 9, out.numel(), dtype=out.dtype).sin().reshape(out.shape)
    names = [name for name, _ in layer.named_parameters()]
    grads = torch.autograd.grad((out * seed).sum(), [x, *layer.parameters()], allow_unused=True)
    return out.detach(), dict(zip(["x", *names], grads, strict=True))


def fill_freed_memory_with_nan() -> None:
    """Make reading uninitialised memory visible: small and large blocks are likely to be handed out again."""
    blocks = [torch.full((4**size,), float("nan")) for size in range(2, 11) for _ in range(6)]
    del blocks
