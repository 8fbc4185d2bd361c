"""Attention of every query to every key, through PyTorch's fused kernels, with derivatives of any order."""

from __future__ import annotations

from torch import Tensor

from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives
from acmix_zoo.ops.padded_attention import padded_attention


def fused_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return `softmax(q·k / sqrt(d) + bias) · v`, computed by `torch.nn.functional.scaled_dot_product_attention`.

    The fused kernels have no second derivatives and no forward-mode AD; `plain_attention` provides those.

    Args:
        q: (B, heads, L, d).
        k, v: (B, heads, L′, d).
        bias: added to the logits, broadcast to (B, heads, L, L′).

    Returns:
        (B, heads, L, d).
    """
    tensors = (q, k, v) if bias is None else (q, k, v, bias)
    if is_transformed(*tensors):
        return plain_attention(*tensors)
    out = padded_attention(q, k, v, bias)
    return with_plain_derivatives(out, plain_attention, *tensors)


def plain_attention(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None) -> Tensor:
    """Return what `fused_attention` returns, by matrix products and a softmax."""
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, L, L′)
    return (logits if bias is None else logits + bias).softmax(-1) @ v
