"""Keep small products of weights in float32 under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is disabled for the device of x.

    Use it for small products of weights, which are cheap in float32. Autocast would round both factors and the result.
    Here, only the result is rounded, when it is used.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
