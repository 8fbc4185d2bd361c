"""The position encoding of the attention path: coordinates of the feature map, projected to the width of a head.

The logit of query i and key j contains `q_i · (pe_i − pe_j)`. Softmax cancels the term with pe_i, because it is the
same for all keys of a query. The fast backends therefore replace the keys by `k − pe` and never unfold any positions.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.geometry_cache import cached
from acmix_zoo.ops.tracing import at_least


def position_encoding(weight: Tensor, h: int, w: int) -> Tensor:
    """Return the encoding (H, W, d) of every position: its coordinates (x, y), from −1 to 1, times `weight` (d, 2).

    It is at least in float32, because half precision cannot represent the small differences between neighbours.
    """
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    place = cached(coordinates, h, w, dtype=weight.dtype, device=weight.device)
    # Multiply and sum, because autocast would run a matrix product in half precision.
    return place[..., :1] * weight[:, 0] + place[..., 1:] * weight[:, 1]


def coordinates(h: int, w: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the coordinates (H, W, 2) of every position: x and y, each from −1 to 1."""

    def axis(n: int) -> Tensor:  # (n,), the values of torch.linspace, which would fix n in an exported graph
        return torch.arange(n, dtype=dtype, device=device).mul(2).div(at_least(n - 1, 1)).sub(1)

    return torch.stack((axis(w).expand(h, w), axis(h).unsqueeze(1).expand(h, w)), 2)


def subtract_positions(k: Tensor, pe: Tensor, dtype: torch.dtype) -> Tensor:
    """Return k (B, H, W, heads, d) − pe (H, W, d), computed in the dtype of pe and rounded once to `dtype`."""
    return (k - pe.unsqueeze(2)).to(dtype)
