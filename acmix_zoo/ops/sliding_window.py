"""The window of keys around every query: its size, and the positions of its keys in a feature map with reflected
border."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from acmix_zoo.ops.reflect import reflect_index


class SlidingWindow(NamedTuple):
    """The size of the window that every query attends to.

    Attributes:
        kernel: number of keys along each axis. It is odd, so that the query is in the centre.
        stride: distance between neighbouring queries. Keys are not subsampled.
        dilation: distance between neighbouring keys.
    """

    kernel: int
    stride: int = 1
    dilation: int = 1


def key_extent(queries: int, window: SlidingWindow) -> int:
    """Return how many positions along one axis the windows of `queries` neighbouring queries cover together."""
    return (queries - 1) * window.stride + (window.kernel - 1) * window.dilation + 1


def window_index(queries: int, size: int, window: SlidingWindow, device: torch.device) -> Tensor:
    """Return the positions (kernel, queries) of the keys of every query along an axis of `size` with reflected
    border."""
    kernel, stride, dilation = window
    offset = (torch.arange(kernel, device=device) - kernel // 2) * dilation
    return reflect_index(torch.arange(queries, device=device) * stride + offset.unsqueeze(1), size)
