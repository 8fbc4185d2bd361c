"""Full attention with PyTorch's fused kernels and derivatives of any order."""

from __future__ import annotations

from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.derivatives import is_transformed, with_plain_derivatives


def fused_attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Return `softmax(q·k / sqrt(d)) · v`, computed by `torch.nn.functional.scaled_dot_product_attention`.

    The fused kernels have no second derivatives and no forward-mode AD; plain operators provide those.

    Args:
        q: (B, heads, L, d).
        k, v: (B, heads, L′, d).

    Returns:
        (B, heads, L, d).
    """
    if is_transformed(q, k, v):
        return _plain(q, k, v)
    return with_plain_derivatives(padded_attention(q, k, v), _plain, q, k, v)


def _plain(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    logits = (q * q.shape[-1] ** -0.5) @ k.mT  # (B, heads, L, L′)
    out: Tensor = logits.softmax(-1) @ v
    return out
