"""The windows of a Swin transformer: partition a feature map and reverse it, roll it, and build masks and indices."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.tracing import is_dynamic


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """Return the windows of a feature map, (B, H, W, …) → (B · H/wh · W/ww, wh·ww, …).

    H and W are multiples of the window.
    """
    b, h, w, *rest = x.shape
    wh, ww = window
    if is_dynamic(h, w):
        order, _ = _window_order((h, w), window, x.device)
        # Flatten all positions between the two shapes. Otherwise the shapes are compared, and are equal for one window.
        return x.flatten(1, 2).index_select(1, order).flatten(0, 1).reshape(-1, wh * ww, *rest)
    x = x.reshape(b, h // wh, wh, w // ww, ww, *rest).transpose(2, 3)  # (B, H/wh, W/ww, wh, ww, …)
    return x.reshape(b * (h // wh) * (w // ww), wh * ww, *rest)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int, int]) -> Tensor:
    """Return the feature map of `size` (B, H, W) from its windows, the inverse of `window_partition`."""
    (wh, ww), (b, h, w), rest = window, size, windows.shape[2:]
    if is_dynamic(h, w):
        _, place = _window_order((h, w), window, windows.device)
        return windows.flatten(0, 1).reshape(-1, h * w, *rest).index_select(1, place).reshape(-1, h, w, *rest)
    x = windows.reshape(b, h // wh, w // ww, wh, ww, *rest).transpose(2, 3)  # (B, H/wh, wh, W/ww, ww, …)
    return x.reshape(b, h, w, *rest)


def _window_order(size: tuple[int, int], window: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return partition and reverse as two permutations of the H·W positions, for exported graphs with dynamic sizes.

    In exported graphs, a size that is 1 in the example would become a constant, such as the number of windows of a
    small feature map. Therefore no tensor here has the number of windows as a dimension.

    Returns:
        order: (H·W,) the k-th position when the windows are read one after another.
        place: (H·W,) the inverse of `order`.
    """
    (h, w), (wh, ww) = size, window
    index = torch.arange(h * w, device=device)
    across, width = (torch.full_like(index, n) for n in (w // ww, w))  # tensors, which ONNX needs for a modulus

    def divide(x: Tensor, by: Tensor | int) -> tuple[Tensor, Tensor]:  # quotient and remainder
        quotient = torch.div(x, by, rounding_mode="floor")
        return quotient, x - quotient * by

    n, within = divide(index, wh * ww)
    (row, col), (y, x) = divide(n, across), divide(within, ww)
    order = (row * wh + y) * width + col * ww + x
    y, x = divide(index, width)
    (row, y), (col, x) = divide(y, wh), divide(x, ww)
    place = (row * across + col) * (wh * ww) + y * ww + x
    return order, place


def roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """Return a feature map (B, H, W, …) rolled by (rows, columns), like `torch.roll`.

    The result is concatenated from slices, as `torch.roll` itself does on a CPU. Inductor (torch 2.15, CPU) compiles
    `torch.roll` to an index with a remainder, which is slow, keeps the tensor transposed, and writes beyond its end.
    """
    for dim, by in enumerate(shift, start=1):
        if is_dynamic(by):  # it may be 0 for some sizes
            n = x.shape[dim]
            source = torch.arange(n, device=x.device) - by
            x = x.index_select(dim, source + n * (source < 0).long() - n * (source >= n).long())
        elif by:
            x = torch.cat(x.tensor_split((-by,), dim)[::-1], dim)
    return x


def crop(x: Tensor, h: int, w: int) -> Tensor:
    """Return the first h rows and w columns, (B, H, W, …) → (B, h, w, …)."""
    if is_dynamic(h, w):  # a slice would make it a constant whether anything is cut off
        return x.index_select(1, torch.arange(h, device=x.device)).index_select(2, torch.arange(w, device=x.device))
    return x[:, :h, :w]


def shifted_window_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """Return the mask of shifted windows, for a feature map that was rolled by −shift.

    The mask is 0 if two positions of a window were in the same window before the roll, and −100 otherwise. Swin uses
    −100 instead of −inf, and its pretrained weights depend on it.

    Returns:
        float32 (H/wh · W/ww, wh·ww, wh·ww).
    """

    def region(length: int, side: int, offset: int) -> Tensor:
        """Return 0 for other windows, 1 for the start of the last window, and 2 for its end."""
        position = torch.arange(length, device=device)
        return (position >= length - side).long() + (position >= length - offset).long()

    rows, cols = (region(length, side, offset) for length, side, offset in zip(size, window, shift, strict=True))
    labels = window_partition((rows.unsqueeze(1) * 3 + cols)[None], window)  # (windows, wh·ww)
    is_same = (labels.unsqueeze(1) == labels.unsqueeze(2)).to(torch.float32)
    return (is_same - 1) * 100.0


def window_masks(mask: Tensor, rows: int, cols: int, images: int = 1) -> Tensor:
    """Return the masks of rows × cols shifted windows, (images·rows·cols, 1, L, L).

    Args:
        mask: (4, L, L), the `shifted_window_mask` of 2 × 2 windows: for a window without a seam, with one between
            columns, with one between rows, and with both.
        rows, cols: number of windows. The last row and the last column contain a seam if they are not the only ones.
        images: how often to repeat the masks.
    """
    # torch.export would make a (rows, cols) tensor's size constant if its example has a single row or column.
    # The ONNX exporter has no `%` for dynamic sizes.
    window = torch.arange(images * rows * cols, device=mask.device)
    window = window - window // (rows * cols) * (rows * cols)
    row = window // cols
    col = window - row * cols
    kind = 2 * ((row == rows - 1) & (row > 0)).long() + ((col == cols - 1) & (col > 0)).long()  # each 0 to 3
    return mask[kind].unsqueeze(1)


def relative_position_index(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Return the index (wh·ww, wh·ww) of the bias of query i and key j in a table of (2·wh − 1)·(2·ww − 1) rows."""
    wh, ww = window
    rows = torch.arange(wh, device=device).repeat_interleave(ww)  # (wh·ww,)
    cols = torch.arange(ww, device=device).repeat(wh)
    dy = rows.unsqueeze(1) - rows + wh - 1
    dx = cols.unsqueeze(1) - cols + ww - 1
    return dy * (2 * ww - 1) + dx
