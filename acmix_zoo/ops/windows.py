"""Windows of a map, for Swin: partition, reverse, the mask of shifted windows, the index of relative positions."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.tracing import is_open, unflatten


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, …) → (B · H/wh · W/ww, wh·ww, …). H and W are multiples of the window."""
    b, h, w, *rest = x.shape
    wh, ww = window
    if is_open(h, w):
        order, _ = _window_order((h, w), window, x.device)
        # Flatten all positions between the two shapes. Otherwise the shapes are compared, and are equal for one window.
        return x.flatten(1, 2).index_select(1, order).flatten(0, 1).reshape(-1, wh * ww, *rest)
    x = x.reshape(b, h // wh, wh, w // ww, ww, *rest).transpose(2, 3)  # (B, H/wh, W/ww, wh, ww, …)
    return x.reshape(b * (h // wh) * (w // ww), wh * ww, *rest)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int, int]) -> Tensor:
    """(B · H/wh · W/ww, wh·ww, …) → (B, H, W, …), with size = (B, H, W)."""
    (wh, ww), (b, h, w), rest = window, size, windows.shape[2:]
    if is_open(h, w):
        _, place = _window_order((h, w), window, windows.device)
        return windows.flatten(0, 1).reshape(-1, h * w, *rest).index_select(1, place).reshape(-1, h, w, *rest)
    x = windows.reshape(b, h // wh, w // ww, wh, ww, *rest).transpose(2, 3)  # (B, H/wh, wh, W/ww, ww, …)
    return x.reshape(b, h, w, *rest)


def _window_order(size: tuple[int, int], window: tuple[int, int], device: torch.device) -> tuple[Tensor, Tensor]:
    """Return partition and reverse as two permutations of the H·W positions, for exported graphs with dynamic sizes.

    In exported graphs, a size that is 1 in the example, such as the number of windows of a small map, would become a
    constant. Therefore no tensor here has the number of windows as a dimension.

    Returns:
        order: (H·W,) the k-th position when the windows are read one after another.
        place: (H·W,) the inverse of `order`.
    """
    (h, w), (wh, ww) = size, window
    at = torch.arange(h * w, device=device)
    across, width = (torch.full_like(at, n) for n in (w // ww, w))  # tensors: ONNX needs them for a modulus

    def divided(x: Tensor, by: Tensor | int) -> tuple[Tensor, Tensor]:
        quotient = torch.div(x, by, rounding_mode="floor")
        return quotient, x - quotient * by

    n, within = divided(at, wh * ww)
    (row, col), (y, x) = divided(n, across), divided(within, ww)
    order = (row * wh + y) * width + col * ww + x
    y, x = divided(at, width)
    (row, y), (col, x) = divided(y, wh), divided(x, ww)
    place = (row * across + col) * (wh * ww) + y * ww + x
    return order, place


def roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """(B, H, W, …) → the same, rolled by (rows, columns), as `torch.roll` does.

    By slices put together, which is what `torch.roll` is on a CPU too: its compiled form indexes by a remainder, for
    which inductor (torch 2.15, CPU) keeps the map transposed, is slow, and writes past its end.
    """
    for dim, by in enumerate(shift, start=1):
        if is_open(by):  # it may be 0 for some sizes
            n = x.shape[dim]
            at = torch.arange(n, device=x.device) - by
            x = x.index_select(dim, at + n * (at < 0).long() - n * (at >= n).long())
        elif by:
            x = torch.cat(x.tensor_split((-by,), dim)[::-1], dim)
    return x


def crop(x: Tensor, h: int, w: int) -> Tensor:
    """Return the first h rows and w columns, (B, H, W, …) → (B, h, w, …)."""
    if is_open(h, w):  # a slice would fix whether anything is cut off
        return x.index_select(1, torch.arange(h, device=x.device)).index_select(2, torch.arange(w, device=x.device))
    return x[:, :h, :w]


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Attention within windows: `softmax(q·k / sqrt(d) + bias) · v`.

    Args:
        q, k, v: (B·n, heads, L, d), the n windows of an image side by side.
        bias: (n, heads, L, L), or (1, heads, L, L) for all windows.

    Returns:
        (B·n, heads, L, d).
    """
    if q.device.type == "cpu" or is_transformed(q, k, v, bias):
        # The CPU's fused kernel gives no gradient to a bias, needs a copy of it for every image, and is no faster.
        return _plain_window_attention(q, k, v, bias)
    out = _fused_window_attention(q, k, v, bias)
    return with_plain_derivatives(out, _plain_window_attention, q, k, v, bias)


def _fused_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute `window_attention` in one kernel. Windows become heads, so the bias is not copied for every image."""
    n = bias.shape[0]
    q, k, v = (unflatten(t, 0, (-1, n)).flatten(1, 2) for t in (q, k, v))  # (B, n·heads, L, d)
    out = padded_attention(q, k, v, bias.flatten(0, 1).unsqueeze(0))  # (B, n·heads, L, d)
    return unflatten(out, 1, (n, -1)).flatten(0, 1)


def _plain_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B·n, heads, L, L)
    weights: Tensor = (unflatten(logits, 0, (-1, bias.shape[0])) + bias).softmax(-1)  # (B, n, heads, L, L)
    return weights.flatten(0, 1) @ v


def shifted_window_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """For a map rolled by −shift: 0 where two positions of a window were neighbours before the roll, −100 elsewhere.

    Returns:
        float32 (H/wh · W/ww, wh·ww, wh·ww). −100 rather than −inf is Swin's value, and pretrained weights know it.
    """

    def region(length: int, side: int, offset: int) -> Tensor:  # 0: other windows, 1: start of the last one, 2: its end
        at = torch.arange(length, device=device)
        return (at >= length - side).long() + (at >= length - offset).long()

    rows, cols = (region(length, side, offset) for length, side, offset in zip(size, window, shift, strict=True))
    labels = window_partition((rows.unsqueeze(1) * 3 + cols)[None], window)  # (windows, wh·ww)
    same = (labels.unsqueeze(1) == labels.unsqueeze(2)).to(torch.float32)
    return (same - 1) * 100.0


def relative_position_index(window: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """(wh·ww, wh·ww) int64: the row of the ((2wh−1)·(2ww−1), heads) table that holds the bias of query i and key j."""
    wh, ww = window
    rows = torch.arange(wh, device=device).repeat_interleave(ww)  # (wh·ww,)
    cols = torch.arange(ww, device=device).repeat(wh)
    dy = rows.unsqueeze(1) - rows + wh - 1
    dx = cols.unsqueeze(1) - cols + ww - 1
    return dy * (2 * ww - 1) + dx
