"""k×k attention over a reflected border: the attention path of the ResNet-form ACmix.

Every query attends to the `kernel × kernel` positions around it, taken from the map continued by reflection, with the
logits of the paper (stage II, "attention-weighted sum"):

    logit(i, j) = q_i · (k_j + pe_i − pe_j) / sqrt(d)

`local_attention_reference` is this formula as printed: it unfolds k, v and the positions into `kernel²` copies. The
fast backends are in `backends/`; `dispatch.py` chooses between them, and `use_backend` forces one.

All maps are laid out (B, H, W, heads, d): a position's heads and channels lie together.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.backends.attention import global_attention, offset_attention, tile_attention
from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.dispatch import plan_attention
from acmix_zoo.ops.reflect import reflected_range
from acmix_zoo.ops.tracing import is_exporting


def local_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *, kernel: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The formula as printed in the paper, with `kernel²` copies of k, v and pe. Readable, slow, large.

    Shapes, arguments and result as `local_attention`.
    """
    h, w, heads, d = q.shape[1:]
    reach = kernel // 2 * dilation
    rows = reflected_range(-reach, h + 2 * reach, h, q.device)
    cols = reflected_range(-reach, w + 2 * reach, w, q.device)

    def windows(x: Tensor) -> Tensor:  # (n, H, W, c) → (n, c, k², Ho·Wo)
        padded = x[:, rows][:, :, cols].permute(0, 3, 1, 2)  # (n, c, H+2r, W+2r)
        unfolded: Tensor = F.unfold(padded, kernel, dilation, stride=stride)
        return unfolded.unflatten(1, (x.shape[3], kernel**2))  # type: ignore[no-any-return]

    def split(x: Tensor) -> Tensor:  # (B, H, W, heads, d) → (B, heads, d, k², Ho·Wo)
        return windows(x.flatten(3)).unflatten(1, (heads, d))  # type: ignore[no-any-return]

    q_i = q[:, ::stride, ::stride]  # (B, Ho, Wo, heads, d)
    ho, wo = q_i.shape[1:3]
    q_i = q_i.flatten(1, 2).permute(0, 2, 3, 1).unsqueeze(3)  # (B, heads, d, 1, Ho·Wo)
    pe_i = pe[::stride, ::stride].flatten(0, 1).T.unsqueeze(1)  # (d, 1, Ho·Wo)
    pe_j = windows(pe.unsqueeze(0))[0]  # (d, k², Ho·Wo)
    logits = (q_i * d**-0.5 * (split(k) + pe_i - pe_j)).sum(2)  # (B, heads, k², Ho·Wo)
    out = (logits.softmax(2).unsqueeze(2) * split(v)).sum(3)  # (B, heads, d, Ho·Wo)
    result: Tensor = out.permute(0, 3, 1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *, kernel: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Attention of every `stride`-th query to its `kernel × kernel` neighbourhood in the reflected map.

    Args:
        q, k, v: (B, H, W, heads, d), any strides.
        pe: position encoding (H, W, d), shared by the heads.
        kernel: odd side of the window, in steps of `dilation`.
        stride: queries are taken at rows and columns 0, stride, 2·stride, …; keys are not subsampled.
        dilation: distance of neighbouring keys in the window.

    Returns:
        (B, ceil(H/stride), ceil(W/stride), heads, d), in the dtype of q.

    Source: ACmix, CVPR 2022, eq. 8–10; the logits' position term as in the authors' code.
    """
    if is_exporting():
        # Gathered, not sliced: the number of queries then has the form that a strided convolution gives its outputs.
        rows, cols = (torch.arange((n - 1) // stride + 1, device=q.device) * stride for n in q.shape[1:3])
        return offset_attention(q[:, rows][:, :, cols], k, v, pe, kernel, stride, dilation)
    if q.numel() == 0:  # no kernel takes an empty batch; the sum keeps every input in the graph
        return q[:, ::stride, ::stride] + 0 * (k.sum() + v.sum() + pe.sum()).to(q.dtype)
    plan = plan_attention(q.shape[1], q.shape[2], kernel, stride, dilation, q.device.type)
    if plan.backend == "reference":
        return local_attention_reference(q, k, v, pe.to(q.dtype), kernel=kernel, stride=stride, dilation=dilation)
    window = (kernel, stride, dilation)
    q = q[:, ::stride, ::stride]

    def plain(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
        return offset_attention(q, k, v, pe, *window)

    if plan.backend == "offset" or is_transformed(q, k, v, pe):
        return plain(q, k, v, pe)
    if plan.tile is None:
        out = global_attention(q, k, v, pe, *window)
    else:
        out = tile_attention(q, k, v, pe, *window, plan.tile)
    return with_plain_derivatives(out, plain, q, k, v, pe)
