"""The stages of ACmix-Swin: patch merging, and transformer blocks whose attention is WindowACmix."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import DropPath, Mlp
from timm.models import checkpoint_seq
from torch import Tensor, nn

from acmix_zoo.layers import WindowACmix
from acmix_zoo.ops.tracing import ceil_div

Size = tuple[int, int]


class Block(nn.Module):
    """A transformer block of WindowACmix and MLP, each with layer norm and residual: (B, H, W, C) → (B, H, W, C)."""

    def __init__(self, dim: int, heads: int, mlp_ratio: float, drop_path: float, drop: float, **acmix: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim)
        self.attn = WindowACmix(dim, heads, proj_drop=drop, **acmix)
        self.norm2 = nn.LayerNorm(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path1 = DropPath(drop_path) if drop_path else nn.Identity()
        self.drop_path2 = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.drop_path1(self.attn(self.norm1(x)))
        return x + self.drop_path2(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PatchMerging(nn.Module):
    """Concatenate 2×2 neighbours, normalise and reduce them: (B, H, W, C) → (B, ceil(H/2), ceil(W/2), 2C)."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        h, w = x.shape[1:3]
        x = F.pad(x, (0, 0, 0, ceil_div(w, 2) * 2 - w, 0, ceil_div(h, 2) * 2 - h))
        x = torch.cat([x[:, y::2, z::2] for z in (0, 1) for y in (0, 1)], 3)  # (B, ceil(H/2), ceil(W/2), 4C)
        return self.reduction(self.norm(x))  # type: ignore[no-any-return]


class Stage(nn.Module):
    """An optional PatchMerging and a sequence of blocks, of which every second one is shifted by half a window."""

    def __init__(self, dim: int, depth: int, merge: bool, drop_path: list[float], **block: Any) -> None:
        super().__init__()
        self.grad_checkpointing = False
        self.downsample = PatchMerging(dim // 2) if merge else nn.Identity()
        self.blocks = nn.Sequential(*(Block(dim, drop_path=drop_path[i], window=(1, 1), **block) for i in range(depth)))

    def set_window(self, window: Size, size: Size) -> None:
        """Set the window for feature maps of `size`. The window is at most as large as the feature map.

        Every second block has a shift, even if the window covers the feature map. `WindowACmix` leaves it out then, but
        needs it for the larger feature maps of a segmenter or detector, whose windows would never be connected
        otherwise.
        """
        clamped = (min(window[0], size[0]), min(window[1], size[1]))
        half = (clamped[0] // 2, clamped[1] // 2)
        for i, block in enumerate(self.blocks):
            block.attn.set_window(clamped, half if i % 2 else (0, 0))  # type: ignore[union-attr,operator]

    def forward(self, x: Tensor) -> Tensor:
        x = self.downsample(x)
        if self.grad_checkpointing:
            return checkpoint_seq(self.blocks, x)  # type: ignore[no-any-return]
        return self.blocks(x)  # type: ignore[no-any-return]
