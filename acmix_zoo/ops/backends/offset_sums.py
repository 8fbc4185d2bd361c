"""SAN's weighted sums on a CPU: one multiplication and sum per offset of the window, without copies of the value.

A sum of k² terms in half precision would lose digits with every term, so everything is at least in float32.
"""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.reflect import reflect_pad, reflect_pad_backward

# Largest number of positions for which channels_last is the faster layout on a CPU. It is three times as fast at 7×7,
# but three times as slow at 56×56.
_CHANNELS_LAST_UP_TO = 400


def offset_sums(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Return the weighted sum (B, C, H, W) of the neighbours of every position, at least in float32.

    Args:
        value: (B, C, H, W).
        weight: (B, k²·wc, H, W), channels ordered (k², wc). C is a multiple of wc.
        kernel: the side length k.
    """
    padded, values, weights = _prepare(value, weight, kernel)
    h, w = value.shape[2:]
    out = torch.zeros_like(padded[:, :, :h, :w])  # in the layout of the padded value
    sums = out.unflatten(1, values.shape[1:3])  # (B, share, wc, H, W), a view
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        sums.addcmul_(values[..., y : y + h, x : x + w], weights[:, j].unsqueeze(1))
    return out


def offset_sums_backward(grad: Tensor, value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of value and weight, given the gradient (B, C, H, W) of the sums."""
    padded, values, weights = _prepare(value, weight, kernel)
    h, w = value.shape[2:]
    layout = torch.contiguous_format if padded.is_contiguous() else torch.channels_last
    grads = grad.to(padded.dtype).contiguous(memory_format=layout)
    grads = grads.unflatten(1, values.shape[1:3])  # (B, share, wc, H, W)
    d_padded, d_weights = torch.zeros_like(padded), torch.empty_like(weights)
    d_values = d_padded.unflatten(1, values.shape[1:3])  # a view
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        d_values[..., y : y + h, x : x + w].addcmul_(grads, weights[:, j].unsqueeze(1))
        torch.sum(grads * values[..., y : y + h, x : x + w], 1, out=d_weights[:, j])
    return reflect_pad_backward(d_padded, kernel // 2), d_weights.flatten(1, 2)  # (B, C, H, W), (B, k²·wc, H, W)


def _prepare(value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return the padded value, a view of it, and the weights, in the faster layout and at least in float32.

    Returns:
        (B, C, H + k − 1, W + k − 1), (B, share, wc, H + k − 1, W + k − 1) and (B, k², wc, H, W).
    """
    is_channels_last = value.device.type == "cpu" and value.shape[2:].numel() <= _CHANNELS_LAST_UP_TO
    layout = torch.channels_last if is_channels_last else torch.contiguous_format
    exact, n_shared = torch.promote_types(value.dtype, torch.float32), weight.shape[1] // kernel**2
    padded = reflect_pad(value.to(exact), kernel // 2).contiguous(memory_format=layout)
    weights = weight.to(exact).contiguous(memory_format=layout).unflatten(1, (kernel**2, n_shared))
    return padded, padded.unflatten(1, (value.shape[1] // n_shared, n_shared)), weights
