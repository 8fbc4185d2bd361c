"""Attention of every query to the window around it, with reflected borders: the attention path of `ACmix2d`.

Every query i attends to kernel × kernel positions j around it. The logits are those of the paper (stage II):

    logit(i, j) = q_i · (k_j + pe_i − pe_j) / sqrt(d)

`local_attention_reference` computes this formula as printed, on kernel² unfolded copies of k, v and the positions.
`local_attention` computes the same with one of the fast backends in `backends/`, which `dispatch.py` chooses.

Feature maps have the shape (B, H, W, heads, d), so that all channels of a position are adjacent in memory.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.backends.global_attention import global_attention
from acmix_zoo.ops.backends.offset_attention import offset_attention
from acmix_zoo.ops.backends.tile_attention import tile_attention
from acmix_zoo.ops.backends.triton.attention import triton_attention
from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.dispatch import plan_attention
from acmix_zoo.ops.reflect import reflected_range
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.ops.tracing import is_exporting


def local_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow) -> Tensor:
    """Return the attention of every query to the window around it.

    Args:
        q, k, v: (B, H, W, heads, d), with any strides.
        pe: position encoding (H, W, d), shared by the heads.
        window: the size of the window, and the stride of the queries.

    Returns:
        (B, ceil(H/stride), ceil(W/stride), heads, d), in the dtype of q.

    Source: ACmix, CVPR 2022, equations 8–10, with the position term of the authors' code.
    """
    stride = window.stride
    if is_exporting():
        # Index instead of slicing, so that the number of queries is the same expression as for a strided convolution.
        rows, cols = (torch.arange((n - 1) // stride + 1, device=q.device) * stride for n in q.shape[1:3])
        return offset_attention(q[:, rows][:, :, cols], k, v, pe, window)
    if q.numel() == 0:  # no kernel accepts an empty batch; the sum keeps every input in the graph
        return q[:, ::stride, ::stride] + 0 * (k.sum() + v.sum() + pe.sum()).to(q.dtype)

    plan = plan_attention(q.shape[1], q.shape[2], window, q.device.type)
    if plan.backend == "reference":
        return local_attention_reference(q, k, v, pe.to(q.dtype), window)
    q = q[:, ::stride, ::stride]  # (B, Ho, Wo, heads, d)

    def plain(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
        return offset_attention(q, k, v, pe, window)

    if plan.backend == "offset" or is_transformed(q, k, v, pe):
        return plain(q, k, v, pe)
    if plan.backend == "triton":
        out = triton_attention(q, k, v, pe, window)
    elif plan.tile is None:
        out = global_attention(q, k, v, pe, window)
    else:
        out = tile_attention(q, k, v, pe, window, plan.tile)
    return with_plain_derivatives(out, plain, q, k, v, pe)


def local_attention_reference(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow) -> Tensor:
    """Compute `local_attention` as printed in the paper. This is slow, and copies k and v kernel² times."""
    h, w, heads, d = q.shape[1:]
    kernel, stride, dilation = window
    reach = kernel // 2 * dilation
    rows = reflected_range(-reach, h + 2 * reach, h, q.device)
    cols = reflected_range(-reach, w + 2 * reach, w, q.device)

    def windows(x: Tensor) -> Tensor:  # (n, H, W, c) → (n, c, k², Ho·Wo)
        padded = x[:, rows][:, :, cols].permute(0, 3, 1, 2)  # (n, c, H + 2·reach, W + 2·reach)
        unfolded: Tensor = F.unfold(padded, kernel, dilation, stride=stride)
        return unfolded.unflatten(1, (x.shape[3], kernel**2))  # type: ignore[no-any-return]

    def windows_per_head(x: Tensor) -> Tensor:  # (B, H, W, heads, d) → (B, heads, d, k², Ho·Wo)
        return windows(x.flatten(3)).unflatten(1, (heads, d))  # type: ignore[no-any-return]

    q_i = q[:, ::stride, ::stride]  # (B, Ho, Wo, heads, d)
    ho, wo = q_i.shape[1:3]
    q_i = q_i.flatten(1, 2).permute(0, 2, 3, 1).unsqueeze(3)  # (B, heads, d, 1, Ho·Wo)
    pe_i = pe[::stride, ::stride].flatten(0, 1).T.unsqueeze(1)  # (d, 1, Ho·Wo)
    pe_j = windows(pe.unsqueeze(0))[0]  # (d, k², Ho·Wo)
    logits = (q_i * d**-0.5 * (windows_per_head(k) + pe_i - pe_j)).sum(2)  # (B, heads, k², Ho·Wo)
    out = (logits.softmax(2).unsqueeze(2) * windows_per_head(v)).sum(3)  # (B, heads, d, Ho·Wo)
    result: Tensor = out.permute(0, 3, 1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result
