"""Windows of a map, for Swin: partition, reverse, the mask of shifted windows, the index of relative positions."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.padded_attention import padded_attention


def window_partition(x: Tensor, window: tuple[int, int]) -> Tensor:
    """(B, H, W, …) → (B · H/wh · W/ww, wh·ww, …). H and W are multiples of the window."""
    b, h, w, *rest = x.shape
    wh, ww = window
    x = x.reshape(b, h // wh, wh, w // ww, ww, *rest).transpose(2, 3)  # (B, H/wh, W/ww, wh, ww, …)
    return x.reshape(b * (h // wh) * (w // ww), wh * ww, *rest)


def window_reverse(windows: Tensor, window: tuple[int, int], size: tuple[int, int, int]) -> Tensor:
    """(B · H/wh · W/ww, wh·ww, …) → (B, H, W, …), with size = (B, H, W)."""
    (wh, ww), (b, h, w), rest = window, size, windows.shape[2:]
    x = windows.reshape(b, h // wh, w // ww, wh, ww, *rest).transpose(2, 3)  # (B, H/wh, wh, W/ww, ww, …)
    return x.reshape(b, h, w, *rest)


def roll(x: Tensor, shift: tuple[int, int]) -> Tensor:
    """(B, H, W, …) → the same, rolled by (rows, columns), as `torch.roll` does.

    By slices put together, which is what `torch.roll` is on a CPU too: its compiled form indexes by a remainder, for
    which inductor (torch 2.15, CPU) keeps the map transposed, is slow, and writes past its end.
    """
    for dim, by in enumerate(shift, start=1):
        if by:
            x = torch.cat(x.tensor_split((-by,), dim)[::-1], dim)
    return x


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
    """`window_attention` in one kernel. Windows become heads, so that the bias is not copied for every image."""
    n = bias.shape[0]
    q, k, v = (t.unflatten(0, (-1, n)).flatten(1, 2) for t in (q, k, v))  # (B, n·heads, L, d)
    out = padded_attention(q, k, v, bias.flatten(0, 1).unsqueeze(0))  # (B, n·heads, L, d)
    return out.unflatten(1, (n, -1)).flatten(0, 1)  # type: ignore[no-any-return]


def _plain_window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # (B·n, heads, L, L)
    weights = (logits.unflatten(0, (-1, len(bias))) + bias).softmax(-1)  # (B, n, heads, L, L)
    return weights.flatten(0, 1) @ v  # type: ignore[no-any-return]


def shifted_window_mask(
    size: tuple[int, int], window: tuple[int, int], shift: tuple[int, int], device: torch.device | None = None
) -> Tensor:
    """For a map rolled by −shift: 0 where two positions of a window were neighbours before the roll, −100 elsewhere.

    Returns:
        float32 (H/wh · W/ww, wh·ww, wh·ww). −100 rather than −inf is Swin's value, and pretrained weights know it.
    """

    def region(length: int, side: int, offset: int) -> Tensor:  # 0 untouched windows, 1 the last one's head, 2 its tail
        at = torch.arange(length, device=device)
        if offset == 0:
            return torch.zeros_like(at)
        return (at >= length - side).long() + (at >= length - offset).long()

    rows, cols = (region(length, side, offset) for length, side, offset in zip(size, window, shift, strict=True))
    labels = window_partition((rows.unsqueeze(1) * 3 + cols)[None], window)  # (windows, wh·ww)
    if torch.compiler.is_compiling():
        # Equality as a product: a compiler then keeps the mask, and does not compare again for every head.
        kinds = F.one_hot(labels, 9).to(torch.float32)  # (windows, wh·ww, 9)
        same = kinds @ kinds.mT
    else:
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
