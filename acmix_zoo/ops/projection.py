"""Stage I of ACmix: project every pixel to q, k and v with one matrix product, that is, a 1×1 convolution."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """Return the projections of every pixel: x (B, C, H, W), weight (N, C), bias (N,) → (B, H, W, N)."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias)


def project_backward(grad: Tensor, x: Tensor, weight: Tensor, *, needs_x: bool = True) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of x and weight, given the gradient (B, H, W, N) of the projections.

    The gradient of x is None if `needs_x` is False.
    """
    rows = grad.flatten(0, 2)  # (B·H·W, N)
    d_x = (rows @ weight).view(*grad.shape[:3], x.shape[1]).permute(0, 3, 1, 2) if needs_x else None
    return d_x, rows.T @ x.permute(0, 2, 3, 1).flatten(0, 2)
