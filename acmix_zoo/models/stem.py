"""The stem of the networks for 32-pixel images: two 3×3 convolutions, the second with stride 2."""

from __future__ import annotations

from torch import nn


def small_stem(in_chans: int, width: int) -> nn.Sequential:
    """(B, in_chans, H, W) → (B, width, ceil(H/2), ceil(W/2)), before its batch norm.

    A stem of small convolutions rather than a large kernel or patches: on few pixels every one counts, and networks of
    attention train faster behind it ("Early Convolutions Help Transformers See Better", NeurIPS 2021).
    """
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(width // 2, width, 3, 2, 1, bias=False),
    )
