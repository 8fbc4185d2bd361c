"""SAN's weighted sums with few kernel launches, for devices where launching a kernel takes longer than running it.

`offset_sums.py` loops over the k² offsets of the window. On a GPU this takes several launches per offset: 225 for one
7×7 aggregation including its gradient. Here, one multiplication with a strided view of the windows handles all offsets,
followed by one sum. The products are the only large buffer, k² times the size of the value, so they are computed in
chunks of bounded size.

For half-precision inputs, products and sums are in float32. All sums have a fixed order, so results are bit-identical
between runs.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.reflect import reflect_pad, reflect_pad_backward

# Size of the products per chunk. Not tuned on a GPU: it limits the memory and keeps the number of chunks small.
_PRODUCT_BYTES = 128 << 20


def window_sums(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Return the weighted sum (B, C, H, W) of the neighbours of every position, in the dtype of the value.

    Args:
        value: (B, C, H, W).
        weight: (B, k²·wc, H, W), channels ordered (k², wc). C is a multiple of wc.
        kernel: the side length k.
    """
    padded = reflect_pad(value, kernel // 2)  # (B, C, H + k − 1, W + k − 1)
    weights = _window_weights(weight, kernel)
    out = padded.new_empty((*padded.shape[:2], *weight.shape[2:]))  # (B, C, H, W)
    sums = out.unflatten(1, (-1, weights.shape[1]))  # (B, share, wc, H, W), a view
    for images, rows in _chunks(out, kernel):
        windows = _windows(padded, weights.shape[1], kernel, images, rows)  # (b, share, wc, h, W, k, k)
        products = windows * weights[images, :, rows].unsqueeze(1)
        sums[images, :, :, rows] = products.sum((-2, -1), dtype=_sum_dtype(padded))
    return out


def window_sums_backward(grad: Tensor, value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of value, at least in float32, and of weight, in its own dtype.

    `grad` is the gradient of the sums, (B, C, H, W).
    """
    padded = reflect_pad(value, kernel // 2)
    weights = _window_weights(weight, kernel)
    n_shared, width = weights.shape[1], grad.shape[3]
    # In the gradient of the value, chunks of rows overlap by k − 1 rows, so they are accumulated in float32.
    d_padded = padded.new_zeros(padded.shape, dtype=_sum_dtype(padded))
    d_weight = weight.new_empty(weight.shape)
    d_weights = _window_weights(d_weight, kernel)
    grads = grad.unflatten(1, (-1, n_shared))[..., None, None]  # (B, share, wc, H, W, 1, 1)
    for images, rows in _chunks(grad, kernel):
        windows = _windows(padded, n_shared, kernel, images, rows)  # (b, share, wc, h, W, k, k)
        part = grads[images, :, :, rows].to(windows.dtype)
        d_weights[images, :, rows] = (part * windows).sum(1)
        # (b, share, wc, k, k, h, W): the order of F.fold, which adds every product to the position it came from.
        products = part.movedim((-2, -1), (3, 4)) * weights[images, :, rows].movedim((-2, -1), (2, 3)).unsqueeze(1)
        columns = products.reshape(len(products), grad.shape[1] * kernel**2, -1)  # (b, C·k², h·W)
        size = (rows.stop - rows.start + kernel - 1, width + kernel - 1)
        folded = F.fold(columns, size, kernel)  # (b, C, h + k − 1, W + k − 1)
        d_padded[images, :, rows.start : rows.stop + kernel - 1] += folded
    return reflect_pad_backward(d_padded, kernel // 2), d_weight


def _window_weights(weight: Tensor, kernel: int) -> Tensor:
    """Return a view of the weights (B, k²·wc, H, W) as (B, wc, H, W, k, k)."""
    return weight.unflatten(1, (kernel, kernel, -1)).movedim((1, 2), (-2, -1))  # type: ignore[no-any-return]


def _windows(padded: Tensor, n_shared: int, kernel: int, images: slice, rows: slice) -> Tensor:
    """Return the windows (b, share, wc, h, W, k, k) of some images and rows in the dtype of the sums.

    The result is a view. If the dtype differs, the input is converted before the view is taken.
    """
    part = padded[images, :, rows.start : rows.stop + kernel - 1].to(_sum_dtype(padded))
    return part.unflatten(1, (-1, n_shared)).unfold(3, kernel, 1).unfold(4, kernel, 1)  # type: ignore[no-any-return]


def _sum_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype of sums over elements of x: at least float32."""
    return torch.promote_types(x.dtype, torch.float32)


def _chunks(out: Tensor, kernel: int) -> Iterator[tuple[slice, slice]]:
    """Yield slices (images, rows) of a result (B, C, H, W) whose products fit into `_PRODUCT_BYTES`.

    Each covers all rows of as many images as fit. If not even one image fits, it covers as many of its rows as
    possible, at least one.
    """
    b, c, h, w = out.shape
    row = c * w * kernel**2 * _sum_dtype(out).itemsize
    images = min(b, max(1, _PRODUCT_BYTES // max(h * row, 1)))
    rows = h if h * row <= _PRODUCT_BYTES else max(1, _PRODUCT_BYTES // row)
    for image in range(0, b, max(images, 1)):
        for start in range(0, h, rows):
            yield slice(image, min(image + images, b)), slice(start, min(start + rows, h))
