"""What the layers ask of their arguments alike, in one set of words."""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

Paths = Literal["both", "attention", "convolution"]


def check_paths(layer: str, paths: str) -> None:
    """
    Raises:
        ValueError: no such paths.
    """
    if paths not in get_args(Paths):
        raise ValueError(f'{layer}: paths must be "both", "attention" or "convolution", got {paths!r}')


def auto_heads(width: int) -> int:
    """Return the largest divisor of `width` up to max(4, width // 64).

    This gives four heads, as in the paper, for up to 256 channels, and heads of 64 channels for wider layers. If that
    number does not divide the width, the next smaller divisor is used.
    """
    return next(heads for heads in range(max(4, width // 64), 0, -1) if width % heads == 0)


def check_heads(layer: str, name: str, width: int, heads: int, *, auto: bool = False) -> None:
    """
    Args:
        auto: whether the layer takes heads="auto".

    Raises:
        ValueError: the heads do not divide the width. The message suggests the closest widths and numbers of heads.
    """
    if width % heads:
        lower = width // heads * heads
        widths = f"{lower} or {lower + heads}" if lower else f"{heads}"
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - heads), n))
        choice = f'heads={near} or heads="auto"' if auto else f"heads={near}"
        raise ValueError(f"{layer}: heads={heads} does not divide {name}={width}. Use {name}={widths}, or {choice}")


def check_dtype(owner: str, x: Tensor, first: nn.Module) -> None:
    """Check the dtype of an input before the first module that uses it.

    Under autocast, float32 and all dtypes that autocast uses are accepted. Modules without a floating-point weight,
    such as quantised ones, are not checked.

    Raises:
        ValueError: the dtype differs from that of the weights.
    """
    if isinstance(x, torch.fx.Proxy):  # proxies have no dtype while torch.fx traces
        return
    while isinstance(first, nn.Sequential):
        first = first[0]
    weight = getattr(first, "weight", None)
    if not isinstance(weight, Tensor) or not weight.is_floating_point() or x.dtype == weight.dtype:
        return
    device = x.device.type
    if x.dtype in (torch.float32, torch.float16, torch.bfloat16):
        if torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            return
    scale = "" if x.is_floating_point() else ", scaled and normalised as for training"
    raise ValueError(
        f"{owner}: the input is {x.dtype}, but the weights are {weight.dtype}. Convert the input with "
        f"x.to({weight.dtype}){scale}"
    )
