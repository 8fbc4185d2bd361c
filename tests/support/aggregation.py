"""Examples of SAN's aggregation, with the results of its reference."""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

import torch
from torch import Tensor

from acmix_zoo.ops.aggregation import aggregate_reference


class Shape(NamedTuple):
    """The value's shape, the number of weights that its channels share, and the side length of the window."""

    value: tuple[int, int, int, int]
    n_shared: int
    kernel: int


# With interior windows, without, smaller than the window, and a single position.
SHAPES = [
    Shape((2, 8, 5, 4), 4, 3),
    Shape((1, 4, 7, 6), 2, 5),
    Shape((1, 2, 8, 7), 2, 7),
    Shape((2, 2, 3, 2), 1, 7),
    Shape((1, 4, 1, 1), 2, 3),
]


class Example(NamedTuple):
    """Float64 tensors of an aggregation: value, weight, the gradient of the result."""

    value: Tensor
    weight: Tensor
    grad: Tensor

    def to(self, *args: object) -> Example:
        """Return the tensors converted to a device or dtype."""
        return Example(*(t.to(*args) for t in self))  # type: ignore[call-overload]


def example(shape: Shape) -> Example:
    """Return a random example."""
    b, c, h, w = shape.value
    sizes = (shape.value, (b, shape.kernel**2 * shape.n_shared, h, w), (b, c, h, w))
    return Example(*(torch.randn(size, dtype=torch.float64) for size in sizes))


def with_gradients(function: object, example: Example, kernel: int) -> list[Tensor]:
    """Return the result of `function`, and the gradients of value and weight."""
    leaves = [t.detach().clone().requires_grad_() for t in example[:2]]
    out: Tensor = function(*leaves, kernel)  # type: ignore[operator]
    return [out.detach(), *torch.autograd.grad(out, leaves, example.grad)]


@cache
def solved_example(shape: Shape) -> tuple[Example, list[Tensor]]:
    """Return an example, and what the reference computes for it. The loops are slow, so the results are shared."""
    torch.manual_seed(0)
    tensors = example(shape)
    return tensors, with_gradients(aggregate_reference, tensors, shape.kernel)
