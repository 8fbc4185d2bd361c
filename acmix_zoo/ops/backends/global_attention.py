"""The global backend of `local_attention`, for small feature maps: one attention between all queries and all positions.

Nothing is padded or gathered. A mask selects the keys of each query's window. Near the border, reflection shows some
keys several times. A key that appears m times gets log(m) added to its logit, which multiplies its weight by m.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.geometry_cache import cached
from acmix_zoo.ops.position_encoding import subtract_positions
from acmix_zoo.ops.sliding_window import SlidingWindow, window_index


def global_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow) -> Tensor:
    """Return the attention of every query to its window.

    Args:
        q: (B, Ho, Wo, heads, d), already subsampled by the stride.
        k, v: (B, H, W, heads, d).
        pe: position encoding (H, W, d).
        window: the size of the window.

    Returns:
        (B, Ho, Wo, heads, d).
    """
    ho, wo = q.shape[1:3]
    mask = cached(multiplicity_mask, ho, wo, k.shape[1], k.shape[2], window, dtype=q.dtype, device=q.device)
    queries = q.flatten(1, 2).transpose(1, 2)  # (B, heads, Ho·Wo, d)
    keys = subtract_positions(k, pe, q.dtype).flatten(1, 2).transpose(1, 2)  # (B, heads, H·W, d)
    values = v.flatten(1, 2).transpose(1, 2)  # (B, heads, H·W, d)
    out = padded_attention(_with_dense_rows(queries), _with_dense_rows(keys), _with_dense_rows(values), mask)
    result: Tensor = out.transpose(1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result


def multiplicity_mask(
    ho: int, wo: int, h: int, w: int, window: SlidingWindow, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """Return the mask (Ho·Wo, H·W): the log of how often a query's window shows a key, or −inf if it does not."""

    def count(queries: int, size: int) -> Tensor:  # (queries, size)
        seen = window_index(queries, size, window, device)  # (kernel, queries)
        return (seen.unsqueeze(2) == torch.arange(size, device=device)).sum(0)  # one_hot would fix size in a graph

    times = count(ho, h)[:, None, :, None] * count(wo, w)[None, :, None, :]  # (Ho, Wo, H, W)
    # float32, because MPS has no float64. Products of small counts are exact in float32.
    return times.flatten(2).flatten(0, 1).to(torch.promote_types(dtype, torch.float32)).log().to(dtype)


def _with_dense_rows(x: Tensor) -> Tensor:
    """Return x with a last stride of 1. The CPU's flash kernel silently reads garbage from any other."""
    return x if x.stride(-1) == 1 else x.contiguous()
