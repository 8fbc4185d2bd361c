"""SAN's weighted sums as contestants of the benchmark: ours, and the form that copies every value k² times."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.aggregation import aggregate


class Aggregation(nn.Module):
    """Sums (B, channels, side, side) with weights of its own; its shapes are those of a stage of SAN.

    Args:
        unfold: in the form that unfolds the value, as one writes it without a kernel of one's own.
        batch: images that it has weights for.
        kernel: side of the neighbourhood; eight channels share a weight.
    """

    def __init__(self, unfold: bool, batch: int, channels: int, side: int, kernel: int) -> None:
        super().__init__()
        if channels % 8:
            raise ValueError(f"bench: eight channels share a weight, so {channels} must be a multiple of 8")
        self.form = unfolded if unfold else aggregate
        self.kernel, self.macs = kernel, kernel**2 * channels * side**2
        self.weight = nn.Parameter(torch.randn(batch, kernel**2 * channels // 8, side, side) / kernel**2)

    def forward(self, value: Tensor) -> Tensor:
        return self.form(value, self.weight, self.kernel)


def unfolded(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """`aggregate` by `unfold`: every value k² times, times its weights, summed."""
    h, w = value.shape[2:]
    columns = F.unfold(F.pad(value, [kernel // 2] * 4, mode="reflect"), kernel)  # (B, C·k², H·W)
    weights = weight.flatten(2).unflatten(1, (kernel**2, -1)).transpose(1, 2).unsqueeze(1)  # (B, 1, wc, k², H·W)
    products = columns.unflatten(1, (-1, *weights.shape[2:4])) * weights  # (B, share, wc, k², H·W)
    out: Tensor = products.sum(3).flatten(1, 2).unflatten(2, (h, w))  # (B, C, H, W)
    return out
