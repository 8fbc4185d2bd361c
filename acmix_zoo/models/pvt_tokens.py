"""From feature maps to tokens and back, for PVT and Container: patches, position tables and maps."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.tracing import ceil_div, is_dynamic, unflatten

Size = tuple[int, int]


class PatchEmbed(nn.Module):
    """Project and normalise patches: (B, in_chans, H, W) → (B, ceil(H/patch), ceil(W/patch), dim)."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        bottom, right = ceil_div(h, self.patch) * self.patch - h, ceil_div(w, self.patch) * self.patch - w
        x = F.pad(x, (0, right, 0, bottom))  # to whole patches
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


def resized_positions(table: Tensor, grid: Size, size: Size) -> Tensor:
    """Interpolate a position table (1, prefix + h·w, C) of a grid (h, w) for feature maps of a different size (H, W).

    The rows of prefix tokens are not changed. Shape: → (1, prefix + H·W, C).
    """
    if not is_dynamic(*size) and grid == size:
        return table
    prefix = table.shape[1] - grid[0] * grid[1]
    maps = table[:, prefix:].transpose(1, 2).unflatten(2, grid)  # (1, C, h, w)
    maps = F.interpolate(maps.float(), size, mode="bilinear").to(table.dtype)
    return torch.cat([table[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)


def as_map(tokens: Tensor, size: Size) -> Tensor:
    """Return tokens (B, prefix + H·W, C) as a feature map (B, C, H, W), without the prefix tokens."""
    h, w = size
    tokens = tokens[:, tokens.shape[1] - h * w :]
    return unflatten(tokens.transpose(1, 2), 2, (h, w))
