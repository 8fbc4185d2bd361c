"""The offset backend of `local_attention`: column by column of the window, in plain operators.

It is slower than the other backends, but it has derivatives of any order, works under every `torch.func` transform, and
no size in it is rounded to a tile. It therefore serves exported graphs with a dynamic batch, height and width, and
wherever the fast kernels have no derivative.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.position_encoding import subtract_positions
from acmix_zoo.ops.sliding_window import SlidingWindow, window_index
from acmix_zoo.ops.tracing import unflatten


def offset_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow) -> Tensor:
    """Return the attention of every query to its window, computed at least in float32.

    Args:
        q: (B, Ho, Wo, heads, d), already subsampled by the stride.
        k, v: (B, H, W, heads, d).
        pe: position encoding (H, W, d).
        window: the size of the window.

    Returns:
        (B, Ho, Wo, heads, d), in the dtype of q.
    """
    kernel = window.kernel
    rows = window_index(q.shape[1], k.shape[1], window, q.device)  # (k, Ho)
    cols = window_index(q.shape[2], k.shape[2], window, q.device)  # (k, Wo)
    dtype, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    keys, values = subtract_positions(k, pe, exact)[:, rows], v.to(exact)[:, rows]  # 2 × (B, k, Ho, W, heads, d)
    q = (q.to(exact) * q.shape[-1] ** -0.5).unsqueeze(1)  # (B, 1, Ho, Wo, heads, d)
    logits = torch.stack([(q * keys[:, :, :, col]).sum(-1) for col in cols.unbind()], 2)  # (B, k, k, Ho, Wo, heads)
    weights = unflatten(logits.flatten(1, 2).softmax(1), 1, (kernel, kernel)).unsqueeze(-1)
    columns = [(weights[:, :, x] * values[:, :, :, col]).sum(1) for x, col in enumerate(cols.unbind())]
    return torch.stack(columns).sum(0).to(dtype)  # the sum of k × (B, Ho, Wo, heads, d)
