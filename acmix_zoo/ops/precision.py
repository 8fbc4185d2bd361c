"""Find out what autocast does to an input, and keep small products of weights in float32 under it."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor

# Looked up once, because torch 2.11 cannot compile the call.
_HAS_AUTOCAST = {device: torch.amp.is_autocast_available(device) for device in ("cpu", "cuda", "xpu", "mps", "meta")}


def is_autocast_on(x: Tensor) -> bool:
    """Return whether autocast is enabled for the device of x."""
    device = x.device.type
    return _has_autocast(device) and torch.is_autocast_enabled(device)


def autocast_dtype(x: Tensor) -> torch.dtype:
    """Return the dtype in which x enters a matrix product: that of autocast where it is enabled, otherwise its own.

    Autocast leaves float64 alone.
    """
    if x.dtype == torch.float64 or not is_autocast_on(x):
        return x.dtype
    return torch.get_autocast_dtype(x.device.type)


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is disabled for the device of x.

    Use it for small products of weights, which are cheap in float32. Autocast would round both factors and the result.
    Here, only the result is rounded, when it is used.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if _has_autocast(device) else nullcontext()


def _has_autocast(device: str) -> bool:
    return _HAS_AUTOCAST[device] if device in _HAS_AUTOCAST else torch.amp.is_autocast_available(device)
