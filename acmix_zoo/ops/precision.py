"""What stays in float32 under autocast."""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor


def autocast_off(x: Tensor) -> AbstractContextManager[Any]:
    """Return a context in which autocast is off for the device of x.

    For small products of weights: they cost nothing in float32, and are then rounded once instead of three times.
    """
    device = x.device.type
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()
