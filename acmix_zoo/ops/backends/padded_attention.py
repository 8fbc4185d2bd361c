"""`scaled_dot_product_attention` that runs in a fused GPU kernel for any head width.

The fused CUDA kernels load rows of 16 bytes: eight half-precision or four float32 channels. For any other head width,
PyTorch silently falls back to its math kernel, which stores all logits. Appending zero channels to q, k and v changes
neither q·k nor the original channels of v, so heads are padded to the next width that the kernels accept.
"""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

_CUDA_ROW_BYTES = 16


def padded_attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
    """Return `softmax(q·k / sqrt(d) + mask) · v`, with heads padded to a width that the device's fused kernels accept.

    Args:
        q: (B, heads, L, d).
        k, v: (B, heads, S, d).
        mask: added to the logits; broadcasts to (B, heads, L, S). In the dtype of q.

    Returns:
        (B, heads, L, d).
    """
    extra = padding(q.shape[-1], q.element_size(), q.device.type)
    if not extra:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    d = q.shape[-1]
    q, k, v = (F.pad(t, (0, extra)) for t in (q, k, v))  # (…, d + extra)
    return F.scaled_dot_product_attention(q, k, v, attn_mask=mask, scale=d**-0.5)[..., :d]


def padding(width: int, itemsize: int, device: str) -> int:
    """Return the number of zero channels to add to a head of `width` channels of `itemsize` bytes on `device`.

    It is 0 on a CPU, whose kernels accept any width, and in float64, for which CUDA has no fused kernel.
    """
    if device != "cuda" or itemsize > 4:
        return 0
    return -width % (_CUDA_ROW_BYTES // itemsize)
