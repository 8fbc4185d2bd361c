"""Attention within the windows of a Swin transformer, with a bias for every pair of positions."""

from __future__ import annotations

from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.tracing import unflatten


def window_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Return `softmax(q·k / sqrt(d) + bias) · v` within every window.

    Args:
        q, k, v: (B·n, heads, L, d), with the n windows of an image next to each other.
        bias: (n, heads, L, L), or (1, heads, L, L) for all windows.

    Returns:
        (B·n, heads, L, d).
    """
    if q.device.type == "cpu" or is_transformed(q, k, v, bias):
        # The fused kernel of a CPU has no gradient for a bias, needs a copy of it for every image, and is no faster.
        return window_attention_plain(q, k, v, bias)
    out = window_attention_fused(q, k, v, bias)
    return with_plain_derivatives(out, window_attention_plain, q, k, v, bias)


def window_attention_plain(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute `window_attention` with plain operators, which have derivatives of any order."""
    logits = (q * q.shape[-1] ** -0.5) @ k.transpose(2, 3)  # (B·n, heads, L, L)
    weights: Tensor = (unflatten(logits, 0, (-1, bias.shape[0])) + bias).softmax(-1)  # (B, n, heads, L, L)
    return weights.flatten(0, 1) @ v


def window_attention_fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor) -> Tensor:
    """Compute `window_attention` in one kernel. Windows become heads, so the bias is not copied for every image."""
    n = bias.shape[0]
    q, k, v = (unflatten(t, 0, (-1, n)).flatten(1, 2) for t in (q, k, v))  # (B, n·heads, L, d)
    out = padded_attention(q, k, v, bias.flatten(0, 1).unsqueeze(0))  # (B, n·heads, L, d)
    return unflatten(out, 1, (n, -1)).flatten(0, 1)
