"""Swin's table of relative position biases: its length, and its interpolation for a different window."""

from __future__ import annotations

import math

from timm.layers import resize_rel_pos_bias_table
from torch import Tensor

Window = tuple[int, int]  # height and width


def table_length(window: Window) -> int:
    """Return the number of distances between two positions of a window, (2·h−1)·(2·w−1)."""
    return (2 * window[0] - 1) * (2 * window[1] - 1)


def resized_bias_table(table: Tensor, before: Window | None, window: Window) -> Tensor:
    """Interpolate a table ((2·h−1)·(2·w−1), heads) of the window `before` for `window`.

    If `before` is unknown, as in a checkpoint, the window is taken to be square. A table that fits no such window is
    returned unchanged, so that loading reports its shape.
    """
    if table.dim() != 2 or before == window:
        return table
    rows = table_length(window)
    if table.is_meta or table.shape[0] == 1:  # nothing to interpolate: one bias for all
        return table[:1].repeat(rows, 1)
    side = math.isqrt(table.shape[0])
    height, width = (side, side) if before is None else (2 * before[0] - 1, 2 * before[1] - 1)
    if height * width != table.shape[0]:
        return table
    maps = table.mT.unflatten(1, (height, width))  # (heads, height, width): timm infers the window from this shape
    maps = maps.expand(-1, max(height, 3), max(width, 3)) if 1 in (height, width) else maps  # at least two points
    shape = (table.shape[1], 2 * window[0] - 1, 2 * window[1] - 1)
    resized = resize_rel_pos_bias_table(maps, new_window_size=window, new_bias_shape=shape)
    return resized.flatten(1).mT.contiguous()  # type: ignore[no-any-return]
