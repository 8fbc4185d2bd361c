"""Swin's windows: partition and reverse, roll, mask and position index, by their definitions."""

from __future__ import annotations

import pytest
import torch

from acmix_zoo.ops.windows import (
    relative_position_index,
    roll,
    shifted_window_mask,
    window_partition,
    window_reverse,
)


@pytest.mark.parametrize(("size", "window"), [((8, 8), (4, 4)), ((6, 10), (3, 5)), ((7, 7), (7, 7))])
def test_reverse_undoes_partition(size: tuple[int, int], window: tuple[int, int]) -> None:
    x = torch.randn(2, *size, 3)
    windows = window_partition(x, window)
    assert windows.shape == (2 * size[0] * size[1] // (window[0] * window[1]), window[0] * window[1], 3)
    assert torch.equal(windows[0], x[0, : window[0], : window[1]].reshape(-1, 3))
    assert torch.equal(window_reverse(windows, window, (len(x), *size)), x)


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -1), (-3, 2)])
def test_roll_agrees_with_pytorch(shift: tuple[int, int]) -> None:
    x = torch.randn(2, 5, 6, 3)
    assert torch.equal(roll(x, shift), x.roll(shift, (1, 2)))


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((8, 8), (4, 4), (2, 2)), ((6, 9), (3, 3), (1, 1)), ((4, 8), (4, 4), (0, 2))]
)
def test_mask_separates_positions_that_only_the_roll_brought_together(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int]
) -> None:
    rows, cols = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    origin = torch.stack([rows, cols], -1)[None].roll((-shift[0], -shift[1]), (1, 2))
    windows = window_partition(origin, window)  # (n, L, 2): where each position was before the roll
    distance = (windows.unsqueeze(1) - windows.unsqueeze(2)).abs()
    is_separated = (distance[..., 0] >= window[0]) | (distance[..., 1] >= window[1])
    assert torch.equal(shifted_window_mask(size, window, shift) < 0, is_separated)


def test_relative_position_index_counts_row_by_row() -> None:
    index = relative_position_index((3, 4))
    for i in range(12):
        for j in range(12):
            dy, dx = i // 4 - j // 4, i % 4 - j % 4
            assert index[i, j] == (dy + 2) * 7 + dx + 3
