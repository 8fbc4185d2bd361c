"""What a PVT is built of: patches, block, positions; and tokens as a map."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from torch import Tensor, nn

from acmix_zoo.layers import ReducedACmix
from acmix_zoo.ops.tracing import ceil_div, is_dynamic, unflatten

Size = tuple[int, int]


class PatchEmbed(nn.Module):
    """(B, in_chans, H, W) → (B, ceil(H/patch), ceil(W/patch), dim): patches, normed."""

    def __init__(self, in_chans: int, dim: int, patch: int) -> None:
        super().__init__()
        self.patch = patch
        self.proj = nn.Conv2d(in_chans, dim, patch, patch)
        self.norm = nn.LayerNorm(dim)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[2:]
        bottom, right = ceil_div(h, self.patch) * self.patch - h, ceil_div(w, self.patch) * self.patch - w
        x = F.pad(x, (0, right, 0, bottom))  # whole patches
        return self.norm(self.proj(x).permute(0, 2, 3, 1))  # type: ignore[no-any-return]


class Block(nn.Module):
    """LayerNorm → ReducedACmix → LayerNorm → MLP, each around an identity. (B, L, C) → (B, L, C)."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, drop: float, **acmix: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ReducedACmix(dim, proj_drop=drop, **acmix)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


def resized_positions(table: Tensor, grid: Size, size: Size) -> Tensor:
    """A table of positions (1, prefix + grid, C) for maps of `size`: bilinear, prefix tokens as they are.

    Shape: → (1, prefix + H·W, C).
    """
    if not is_dynamic(*size) and grid == size:
        return table
    prefix = table.shape[1] - grid[0] * grid[1]
    maps = table[:, prefix:].transpose(1, 2).unflatten(2, grid)  # (1, C, h, w)
    maps = F.interpolate(maps.float(), size, mode="bilinear").to(table.dtype)
    return torch.cat([table[:, :prefix], maps.flatten(2).transpose(1, 2)], 1)


def as_map(tokens: Tensor, size: Size) -> Tensor:
    """(B, prefix + H·W, C) → (B, C, H, W), the prefix left out."""
    h, w = size
    tokens = tokens[:, tokens.shape[1] - h * w :]
    return unflatten(tokens.transpose(1, 2), 2, (h, w))
