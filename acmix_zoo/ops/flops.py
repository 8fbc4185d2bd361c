"""FLOP formulas for `torch.utils.flop_counter.FlopCounterMode`, which would otherwise count our operators as zero.

A compiled graph contains the sums as one operator. The counter hooks all modules, so ACmix layers call their
projections one by one, and the counter sees the arithmetic that runs. The operator of a complete ACmix layer, which
compiled graphs and the native library run, has the formula of its composed convolution. The operator of both paths of
a Swin layer has that of its definition. As everywhere in torch's counter, a multiply-accumulate counts as two.
`acmix_zoo.layers.complexity` counts by definition instead.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from acmix_zoo.ops import aggregation, custom_op, window_paths  # noqa: F401  (define the operators)
from acmix_zoo.ops.backends.triton import attention  # noqa: F401  (likewise)

_Shape = Sequence[int]


@register_flop_formula(torch.ops.acmix_zoo.aggregate)
def _aggregate(value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    b, c, h, w = value
    return 2 * b * c * h * w * kernel**2


@register_flop_formula(torch.ops.acmix_zoo.aggregate_backward)
def _aggregate_backward(grad: _Shape, value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    return 2 * _aggregate(value, weight, kernel)  # one sum each for the value and the weight


@register_flop_formula(torch.ops.acmix_zoo.local_attention)
def _local_attention(q: _Shape, k: _Shape, v: _Shape, pe: _Shape, kernel: int, *_: Any, **__: Any) -> int:
    return 2 * 2 * math.prod(q) * kernel**2  # the logits, and the sum of the values


@register_flop_formula(torch.ops.acmix_zoo.local_attention_backward)
def _local_attention_backward(grad: _Shape, out: _Shape, lse: _Shape, *arguments: Any, **_: Any) -> int:
    return 2 * _local_attention(*arguments)  # the gradient of each product is two products


@register_flop_formula(torch.ops.acmix_zoo.acmix)
def _acmix(
    x: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    positions: _Shape | None,
    fc: _Shape | None,
    kernels: _Shape | None,
    alpha: _Shape | None,
    offset: _Shape | None,
    heads: int,
    kernel_att: int,
    stride: int,
    *_: Any,
    **__: Any,
) -> int:
    b, c, h, w = x
    channels = weight[0] // 3
    macs = b * h * w * c * 3 * channels
    outputs = b * -(-h // stride) * -(-w // stride) * channels
    if positions is not None:
        macs += outputs * 2 * kernel_att**2
    if kernels is not None:
        macs += outputs * kernels[-1] ** 2 * 3 * heads
    return 2 * macs


@register_flop_formula(torch.ops.acmix_zoo.acmix_backward)
def _acmix_backward(grad: _Shape, kept: _Shape, *arguments: Any, **_: Any) -> int:
    return 2 * _acmix(*arguments)  # the gradient of each product is two products


@register_flop_formula(torch.ops.acmix_zoo.window_paths)
def _window_paths(
    projections: _Shape,
    bias: _Shape | None,
    mask: _Shape | None,
    fc: _Shape | None,
    kernels: _Shape | None,
    offset: _Shape | None,
    heads: int,
    window: _Shape,
    shift: _Shape,
    size: _Shape,
    conv_is_rolled: bool,
    *_: Any,
    **__: Any,
) -> int:
    b, h, w, channels = projections[0], projections[1], projections[2], projections[3] // 3
    macs = 0
    if bias is not None:
        macs += h * w * 2 * window[0] * window[1] * channels
    if kernels is not None:
        rows, cols = (h, w) if conv_is_rolled else size
        maps = kernels[1]
        macs += rows * cols * channels * (maps * 3 + maps * kernels[2] * kernels[3])
    return 2 * b * macs


@register_flop_formula(torch.ops.acmix_zoo.window_paths_backward)
def _window_paths_backward(d_attention: _Shape, d_convolution: _Shape, *arguments: Any, **_: Any) -> int:
    return 2 * _window_paths(*arguments)
