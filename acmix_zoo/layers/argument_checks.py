"""Checks of arguments and inputs that are shared by several layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral
from typing import Literal, get_args

import torch
import torch.fx
from torch import Tensor, nn

from acmix_zoo.ops.precision import is_autocast_on
from acmix_zoo.ops.tracing import constant_size, is_tracing

Paths = Literal["both", "attention", "convolution"]


def check_paths(layer: str, paths: str) -> None:
    """Check that `paths` is one of the three known values.

    Raises:
        ValueError: it is not.
    """
    if paths not in get_args(Paths):
        raise ValueError(f'{layer}: paths must be "both", "attention" or "convolution", got {paths!r}')


# The arguments of nn.Conv2d that ACmix2d does not have: what to expect instead, and what to do.
_SAME_PADDING = "Padding is always same-style: the output has ceil(size / stride) pixels per side. Omit the argument"
_CONV2D_ARGUMENTS = {
    "kernel_size": "Expected kernel_conv, the side of the convolution (default 3), or kernel_att, that of the "
    "attention window (default 7). Pass the one that you mean",
    "padding": _SAME_PADDING,
    "padding_mode": "The border is always zeros for the convolution and reflected for the attention. Omit the argument",
    "groups": "The layer is always dense. Omit the argument, or keep nn.Conv2d for grouped convolutions",
    "bias": "The projections always have a bias. Omit the argument",
    "device": "The layer is created on the default device. Move it with layer.to(device)",
    "dtype": "The layer is created in the default dtype. Convert it with layer.to(dtype)",
}


def reject_unknown_arguments(
    layer: str, known: str, positional: tuple[object, ...], keywords: Mapping[str, object]
) -> None:
    """Raise an error if there are unknown arguments. For arguments of nn.Conv2d, it explains what to use instead.

    Args:
        layer: the name of the layer or function.
        known: the names of its arguments, for the error.
        positional, keywords: the unknown arguments.

    Raises:
        TypeError: there is at least one.
    """
    if positional:
        raise TypeError(
            f"{layer}: too many positional arguments. Expected at most four: in_channels, out_channels, kernel_conv, "
            f"and stride. Pass the others by name. {_SAME_PADDING.removesuffix('Omit the argument')}"
            "Omit the padding of nn.Conv2d"
        )
    for name, value in keywords.items():
        advice = _CONV2D_ARGUMENTS.get(name, f"Expected {known}. Correct or omit the argument")
        raise TypeError(f"{layer}: unknown argument {name}={value!r}. {advice}")


def check_odd(layer: str, **kernels: int) -> None:
    """Check that kernel sizes, given by argument name, are odd.

    Raises:
        ValueError: a kernel is even.
    """
    for name, value in kernels.items():
        if value % 2 == 0:
            raise ValueError(
                f"{layer}: {name}={value} is even. Expected an odd size, so that the window has a centre. Use "
                f"{value - 1} or {value + 1}"
            )


def auto_heads(width: int) -> int:
    """Return the largest divisor of `width` up to max(4, width // 64).

    This gives four heads, as in the paper, for up to 256 channels, and heads of 64 channels for wider layers. If that
    number does not divide the width, the next smaller divisor is used.
    """
    return next(heads for heads in range(max(4, width // 64), 0, -1) if width % heads == 0)


def check_heads(layer: str, name: str, width: int, heads: int, *, auto: bool = False) -> None:
    """Check that the number of heads divides the width.

    Args:
        layer: the layer's name, for the error.
        name: the argument that `width` comes from, for the error.
        width: number of channels that the heads share.
        heads: number of heads.
        auto: whether the layer accepts heads="auto".

    Raises:
        ValueError: the heads do not divide the width. The message suggests the closest widths and numbers of heads.
    """
    if heads < 1:
        raise ValueError(f"{layer}: heads={heads} is not positive. Expected a divisor of {name}={width}, such as 1")
    if width % heads:
        lower = width // heads * heads
        widths = f"{lower} or {lower + heads}" if lower else f"{heads}"
        near = min((n for n in range(1, width + 1) if width % n == 0), key=lambda n: (abs(n - heads), n))
        choice = f'heads={near} or heads="auto"' if auto else f"heads={near}"
        raise ValueError(f"{layer}: heads={heads} does not divide {name}={width}. Use {name}={widths}, or {choice}")


def check_window(layer: str, window: tuple[int, int], shift: tuple[int, int]) -> None:
    """Check that a window has at least one pixel, and that it is shifted by less than its sides.

    Raises:
        ValueError: these are not two pairs of integers, the window is empty, or the shift is negative or too large.
    """
    are_pairs = all(
        isinstance(pair, Sequence) and len(pair) == 2 and all(isinstance(n, Integral) for n in pair)
        for pair in (window, shift)
    )
    if not are_pairs or not all(0 <= by < side for by, side in zip(shift, window, strict=True)):
        raise ValueError(
            f"{layer}: window={window} and shift={shift}. Expected (rows, columns) for both, a window of at least 1, "
            "and shifts from 0 to its side minus 1, such as half of it"
        )


def check_feature_map(owner: str, x: Tensor, channels: int) -> None:
    """Check that x is (B, channels, H, W) or (channels, H, W), with H and W of at least 1.

    Raises:
        ValueError: it has another shape.
    """
    expected = f"Expected (B, {channels}, H, W) or ({channels}, H, W)"
    if x.dim() not in (3, 4) or constant_size(x.shape[-3]) != channels:
        raise ValueError(
            f"{owner}: the input has the shape {tuple(x.shape)}. {expected}. Permute the dimensions, or pass another "
            "in_channels to the layer"
        )
    if not is_tracing() and 0 in x.shape[-2:]:
        raise ValueError(
            f"{owner}: the input has the shape {tuple(x.shape)}. {expected} with at least one pixel. Use larger "
            "images, or fewer layers with a stride"
        )


def check_dtype(owner: str, x: Tensor, first: nn.Module) -> None:
    """Check that an input has the dtype of `first`, the first module that uses it.

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
    if x.dtype in (torch.float32, torch.float16, torch.bfloat16) and is_autocast_on(x):
        return
    scale = "" if x.is_floating_point() else ", scaled and normalised as for training"
    raise ValueError(
        f"{owner}: the input is {x.dtype}, but the weights are {weight.dtype}. Convert the input with "
        f"x.to({weight.dtype}){scale}"
    )
