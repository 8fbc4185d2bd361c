"""Evaluation of a segmenter beyond one forward pass: overlapping windows, and the mean of an image and its mirror."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

Network = Callable[[Tensor], Tensor]


def window_starts(length: int, window: int, overlap: float) -> list[int]:
    """Return where windows start so that they cover a length. The last one ends with it.

    Args:
        length: length in pixels.
        window: length of a window.
        overlap: fraction of a window that the next one covers as well, at least.
    """
    if window >= length:
        return [0]
    step = max(1, int(window * (1 - overlap)))
    return [min(start, length - window) for start in range(0, length - window + step, step)]


def slide(network: Network, images: Tensor, window: tuple[int, int], overlap: float) -> Tensor:
    """Return the mean logits of overlapping windows.

    Args:
        network: maps images (B, C, h, w) to logits (B, classes, h, w).
        images: (B, C, H, W). Where they are smaller than a window, the window is cut to their size.
        window: (height, width) of a window.
        overlap: see `window_starts`.

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
