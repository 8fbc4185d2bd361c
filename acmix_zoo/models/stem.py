"""The stem of the networks for 32-pixel images: two 3×3 convolutions, the second with stride 2."""

from __future__ import annotations

from torch import nn


def small_stem(in_chans: int, width: int) -> nn.Sequential:
    """Return a stem (B, in_chans, H, W) → (B, width, ceil(H/2), ceil(W/2)), without the batch norm after it.

    Small images have too few pixels for a 7×7 convolution or for large patches, and attention networks train faster
    after a convolutional stem ("Early Convolutions Help Transformers See Better", NeurIPS 2021).
    """
    return nn.Sequential(
        nn.Conv2d(in_chans, width // 2, 3, 1, 1, bias=False),
        nn.BatchNorm2d(width // 2),
        nn.ReLU(inplace=True),
        nn.Conv2d(width // 2, width, 3, 2, 1, bias=False),
    )


def small_stem_with_norm(in_chans: int, width: int) -> nn.Sequential:
    """Return the same stem with the batch norm and activation that follow it."""
    return nn.Sequential(*small_stem(in_chans, width), nn.BatchNorm2d(width), nn.ReLU(inplace=True))
