"""SAN's aggregation as a candidate of the benchmark: `acmix_zoo.ops.aggregation`, and a baseline that uses unfold."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.aggregation import aggregate

SHARE = 8
"""Number of channels that share a weight, as in SAN."""


class Aggregation(nn.Module):
    """A weighted sum over the neighbours of every position, with the shapes of one stage of SAN.

    The weights are parameters instead of being computed from the input, so that only the sum is measured.

    Args:
        unfold: whether to use the baseline, which stores every value kernel² times.
        batch: number of images.
        channels: number of channels, a multiple of 8.
        side: height and width of the feature map.
        kernel: side of the neighbourhood.

    Shape:
        (batch, channels, side, side) → (batch, channels, side, side).

    Raises:
        ValueError: channels are not a multiple of 8.
    """

    def __init__(self, unfold: bool, batch: int, channels: int, side: int, kernel: int) -> None:
        super().__init__()
        if channels % SHARE:
            raise ValueError(
                f"bench: {channels} channels are not a multiple of {SHARE}. In SAN, {SHARE} channels share a weight. "
                f"Use {max(channels // SHARE, 1) * SHARE} channels"
            )
        self.sum = unfold_and_sum if unfold else aggregate
        self.kernel, self.macs = kernel, kernel**2 * channels * side**2
        self.weight = nn.Parameter(torch.randn(batch, kernel**2 * channels // SHARE, side, side) / kernel**2)

    def forward(self, value: Tensor) -> Tensor:
        return self.sum(value, self.weight, self.kernel)


def unfold_and_sum(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Compute `aggregate` with unfold: copy every value kernel² times, multiply by the weights and sum."""
    h, w = value.shape[2:]
    columns = F.unfold(F.pad(value, [kernel // 2] * 4, mode="reflect"), kernel)  # (B, C·k², H·W)
    weights = weight.flatten(2).unflatten(1, (kernel**2, -1)).transpose(1, 2).unsqueeze(1)  # (B, 1, wc, k², H·W)
    products = columns.unflatten(1, (-1, *weights.shape[2:4])) * weights  # (B, share, wc, k², H·W)
    out: Tensor = products.sum(3).flatten(1, 2).unflatten(2, (h, w))  # (B, C, H, W)
    return out
