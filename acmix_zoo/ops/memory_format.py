"""Find the memory format of a feature map, and convert a result to the same format."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.derivatives import is_transformed
from acmix_zoo.ops.tracing import is_tracing


def detect_memory_format(x: Tensor) -> torch.memory_format:
    """Return the memory format of x (B, C, H, W). If it has both, as with one channel or one pixel, the result is
    contiguous."""
    is_only_channels_last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if is_only_channels_last else torch.contiguous_format


def restore_memory_format(out: Tensor, x: Tensor) -> Tensor:
    """Return `out` in the memory format of x (B, C, H, W): channels_last or contiguous.

    Under a `torch.func` transform, the format of x is unknown, and the result is contiguous.
    """
    memory_format = torch.contiguous_format if is_transformed(x) else detect_memory_format(x)
    if is_tracing():  # not a view, because in TorchScript a ReLU after it could not change it in place
        return out.clone(memory_format=memory_format)
    return out.contiguous(memory_format=memory_format)
