"""Evaluate a segmenter in overlapping windows, and on mirror images."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]
"""Maps images (B, C, H, W) to logits (B, classes, H, W)."""


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return the first pixels of the windows that cover a side of an image. The last window ends with the side.

    Args:
        length: length of the side, in pixels.
        window: length of a window.
        overlap: fraction of a window that the next one also covers, at least.
    """
    if window >= length:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    return [min(start, length - window) for start in range(0, length - window + step, step)]


def slide(network: Network, images: Tensor, window: tuple[int, int], overlap: float) -> Tensor:
    """Return the mean logits of overlapping windows.

    Args:
        network: the network.
        images: (B, C, H, W). A window is at most as large as the images.
        window: (height, width) of a window.
        overlap: fraction of a window that the next one also covers, at least.

    Returns:
        (B, classes, H, W).
    """
    height, width = images.shape[-2:]
    total: Tensor | None = None
    count = images.new_zeros(1, 1, height, width)
    for top in window_starts(height, window[0], overlap):
        for left in window_starts(width, window[1], overlap):
            part = (..., slice(top, top + window[0]), slice(left, left + window[1]))
            logits = network(images[part])
            if total is None:
                total = logits.new_zeros(len(images), logits.shape[1], height, width)
            total[part] += logits
            count[part] += 1
    assert total is not None
    return total / count


def with_mirror(network: Network, images: Tensor) -> Tensor:
    """Return the mean logits of images (B, C, H, W) and of their mirror images, flipped back."""
    return torch.stack([network(images), network(images.flip(-1)).flip(-1)]).mean(0)
