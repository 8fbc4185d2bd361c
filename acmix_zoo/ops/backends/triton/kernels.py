"""The GPU kernels of `attention.py`: attention in a sliding window, and its gradients.

Importing this file imports Triton. All tensors are planes (P, H, W, d), one for each image and head, with adjacent
channels, in float32 or float64. A program computes a tile of TH×TW positions of one plane. It visits the kernel²
positions of their windows one offset at a time, and loads the row of d numbers at that offset for all of its positions:

    th·tw positions × d channels in registers        the 7×7 offsets, one after the other

    ┌────────┐                                        · · · · · · ·
    │ q q q  │   logit = Σ q·k, p = exp(logit − max)  · · · · · · ·
    │ q q q  │ ◄──────────────────────────────────────· · · k v · ·
    └────────┘   out += p·v                           · · · · · · ·

Neighbouring positions load overlapping rows, which a cache can serve. Nothing is written except the result. Every sum
has a fixed order, so results are the same bits each time. A kernel does not depend on the size of the feature map, so
that it is compiled once for all of them.
"""

from __future__ import annotations

import triton
import triton.language as tl

# The lowest finite number is the start of a running maximum: −∞ − (−∞) would be NaN.
_LOWEST = tl.constexpr(-3.0e38)


@triton.jit
def _reflect(position, size):
    """Return the position within 0 … size − 1 that a position beyond the border continues."""
    return (size - 1) - tl.abs((size - 1) - tl.abs(position))


@triton.jit
def _tile(rows, cols, D: tl.constexpr, TH: tl.constexpr, TW: tl.constexpr, BLOCK_D: tl.constexpr):
    """Return what this program computes, of planes (P, rows, cols, D).

    These are the plane, the row and column of each position, whether they are inside, their places in all planes, their
    elements (TH·TW, BLOCK_D), and which of those exist.
    """
    tiles_x = tl.cdiv(cols, TW)
    tiles = tiles_x * tl.cdiv(rows, TH)
    plane = (tl.program_id(0) // tiles).to(tl.int64)  # so that places are computed in 64 bits
    tile = tl.program_id(0) % tiles
    i = tl.arange(0, TH * TW)
    y = (tile // tiles_x) * TH + i // TW
    x = (tile % tiles_x) * TW + i % TW
    inside = (y < rows) & (x < cols)
    c = tl.arange(0, BLOCK_D)
    place = plane * rows * cols + y * cols + x
    return plane, y, x, inside, place, place[:, None] * D + c[None, :], inside[:, None] & (c < D)[None, :]


@triton.jit(do_not_specialize=["heads", "h", "w", "ho", "wo"])
def forward(
    q, k, v, out, lse, heads, h, w, ho, wo, D: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the attention out (B, Ho, Wo, heads, d) and the log of the softmax's sum lse (P, Ho, Wo).

    q (P, Ho, Wo, d) has been scaled; k and v are (P, H, W, d). P is B·heads.
    """
    plane, y, x, inside, place, elements, mask = _tile(ho, wo, D, TH, TW, BLOCK_D)
    c = tl.arange(0, BLOCK_D)
    queries = tl.load(q + elements, mask=mask, other=0)  # (TH·TW, d)
    highest = tl.zeros((TH * TW,), queries.dtype) + _LOWEST
    total = tl.zeros((TH * TW,), queries.dtype)
    result = tl.zeros((TH * TW, BLOCK_D), queries.dtype)
    for i in range(KERNEL):
        row = _reflect(y * STRIDE + (i - KERNEL // 2) * DILATION, h)
        for j in tl.static_range(KERNEL):
            col = _reflect(x * STRIDE + (j - KERNEL // 2) * DILATION, w)
            keys = (plane * h * w + row * w + col)[:, None] * D + c[None, :]
            logit = tl.sum(queries * tl.load(k + keys, mask=mask, other=0), 1)
            new = tl.maximum(highest, logit)
            p = tl.exp(logit - new)
            shrink = tl.exp(highest - new)
            total = total * shrink + p
            result = result * shrink[:, None] + p[:, None] * tl.load(v + keys, mask=mask, other=0)
            highest = new
    result = result / total[:, None]
    tl.store(lse + place, highest + tl.log(total), mask=inside)
    image = plane // heads
    target = ((image * ho * wo + y * wo + x) * heads + plane % heads)[:, None] * D + c[None, :]
    tl.store(out + target, result.to(out.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["h", "w", "ho", "wo"])
def backward_queries(
    q, k, v, grad, lse, delta, grad_q, h, w, ho, wo, D: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradient grad_q (P, Ho, Wo, d) of the scaled queries.

    grad (P, Ho, Wo, d) is that of the result, and delta (P, Ho, Wo) is Σ grad · out.
    """
    plane, y, x, inside, place, elements, mask = _tile(ho, wo, D, TH, TW, BLOCK_D)
    c = tl.arange(0, BLOCK_D)
    queries = tl.load(q + elements, mask=mask, other=0)  # (TH·TW, d)
    grads = tl.load(grad + elements, mask=mask, other=0)  # (TH·TW, d)
    log_sum = tl.load(lse + place, mask=inside, other=0)
    mean = tl.load(delta + place, mask=inside, other=0)
    result = tl.zeros((TH * TW, BLOCK_D), queries.dtype)
    for i in range(KERNEL):
        row = _reflect(y * STRIDE + (i - KERNEL // 2) * DILATION, h)
        for j in tl.static_range(KERNEL):
            col = _reflect(x * STRIDE + (j - KERNEL // 2) * DILATION, w)
            elements_j = (plane * h * w + row * w + col)[:, None] * D + c[None, :]
            keys = tl.load(k + elements_j, mask=mask, other=0)
            values = tl.load(v + elements_j, mask=mask, other=0)
            p = tl.exp(tl.sum(queries * keys, 1) - log_sum)
            result += (p * (tl.sum(grads * values, 1) - mean))[:, None] * keys
    tl.store(grad_q + elements, result, mask=mask)


@triton.jit(do_not_specialize=["h", "w", "ho", "wo"])
def backward_keys(
    q, k, v, grad, lse, delta, grad_k, grad_v, h, w, ho, wo, D: tl.constexpr,
    KERNEL: tl.constexpr, STRIDE: tl.constexpr, DILATION: tl.constexpr,
    TH: tl.constexpr, TW: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """Write the gradients grad_k, grad_v (P, H + 2·border, W + 2·border, d) of the feature map with its border.

    The border is that of the windows, KERNEL // 2 · DILATION. A position in it stands for its reflection.
    """
    border = KERNEL // 2 * DILATION
    plane, y, x, inside, _, elements, mask = _tile(h + 2 * border, w + 2 * border, D, TH, TW, BLOCK_D)
    c = tl.arange(0, BLOCK_D)
    at = (plane * h * w + _reflect(y - border, h) * w + _reflect(x - border, w))[:, None] * D + c[None, :]
    keys = tl.load(k + at, mask=mask, other=0)  # (TH·TW, d)
    values = tl.load(v + at, mask=mask, other=0)  # (TH·TW, d)
    result_k = tl.zeros((TH * TW, BLOCK_D), keys.dtype)
    result_v = tl.zeros((TH * TW, BLOCK_D), keys.dtype)
    for i in range(KERNEL):
        top = y - i * DILATION  # the row of the query that sees this key at offset i, times the stride
        row = top // STRIDE
        row_exists = (top >= 0) & (top % STRIDE == 0) & (row < ho)
        for j in tl.static_range(KERNEL):
            left = x - j * DILATION
            col = left // STRIDE
            exists = inside & row_exists & (left >= 0) & (left % STRIDE == 0) & (col < wo)
            place_i = plane * ho * wo + row * wo + col
            elements_i = place_i[:, None] * D + c[None, :]
            mask_i = exists[:, None] & (c < D)[None, :]
            queries = tl.load(q + elements_i, mask=mask_i, other=0)
            grads = tl.load(grad + elements_i, mask=mask_i, other=0)
            p = tl.exp(tl.sum(queries * keys, 1) - tl.load(lse + place_i, mask=exists, other=0))
            p = tl.where(exists, p, 0)
            result_v += p[:, None] * grads
            mean = tl.load(delta + place_i, mask=exists, other=0)
            result_k += (p * (tl.sum(grads * values, 1) - mean))[:, None] * queries
    tl.store(grad_k + elements, result_k, mask=mask)
    tl.store(grad_v + elements, result_v, mask=mask)
