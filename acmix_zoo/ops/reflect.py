"""Continue a feature map beyond its border by reflection, as indices or as padding.

The edge itself is not repeated: a line 0 1 2 continues as 0 1 2 1 0 1 2 …, and a line of one element as 0 0 0 …. Unlike
`torch.nn.functional.pad(mode="reflect")`, these functions accept a border of any width. Where both are defined, they
agree.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.tracing import at_least, is_exporting


def reflect_index(positions: Tensor, size: int) -> Tensor:
    """Return `positions` (int64, any shape) folded into `0 … size − 1`."""
    period = torch.full_like(positions, at_least(2 * size - 2, 1))  # ONNX needs a tensor as the modulus
    # Not `positions.remainder(period)`: inductor 2.15 takes its bounds for floats and then fails to use it as an index.
    folded = positions - period * torch.div(positions, period, rounding_mode="floor")
    return (size - 1) - (folded - (size - 1)).abs()


def reflected_range(start: int, length: int, size: int, device: torch.device) -> Tensor:
    """Return the indices (length,) of the positions start, start + 1, … along an axis of `size`."""
    return reflect_index(torch.arange(length, device=device) + start, size)


def reflect_pad(x: Tensor, border: int) -> Tensor:
    """Return x (B, C, H, W) with a reflected border: (B, C, H + 2·border, W + 2·border).

    The border is concatenated from slices. Unlike CUDA's reflection padding, they have a deterministic gradient.
    """
    for dim in (2, 3):
        n = x.shape[dim]
        if not is_exporting() and n > border:  # an exported graph must also work for smaller feature maps
            before, after = x.narrow(dim, 1, border).flip(dim), x.narrow(dim, n - 1 - border, border).flip(dim)
            x = torch.cat([before, x, after], dim)
        else:
            x = x.index_select(dim, reflected_range(-border, n + 2 * border, n, x.device))
    return x


def reflect_pad_backward(grad: Tensor, border: int) -> Tensor:
    """Return the gradient of the input of `reflect_pad`, given the gradient of its result.

    The gradient of each element of the border is added to the gradient of the element that it is a copy of.
    """
    for dim in (3, 2):
        n = grad.shape[dim] - 2 * border
        if n > border:
            inner = grad.narrow(dim, border, n).clone()
            inner.narrow(dim, 1, border).add_(grad.narrow(dim, 0, border).flip(dim))
            inner.narrow(dim, n - 1 - border, border).add_(grad.narrow(dim, border + n, border).flip(dim))
        else:
            shape = [n if i == dim else side for i, side in enumerate(grad.shape)]
            index = reflected_range(-border, n + 2 * border, n, grad.device)
            inner = grad.new_zeros(shape).index_add_(dim, index, grad)
        grad = inner
    return grad
