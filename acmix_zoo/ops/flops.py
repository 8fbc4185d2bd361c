"""FLOP formulas for `torch.utils.flop_counter.FlopCounterMode`, which would otherwise count SAN's sums as zero.

A compiled graph holds the sums as one operator. The counter hooks all modules, so ACmix layers call their projections
one by one, and it counts the arithmetic that runs. The operator of a whole ACmix layer, which is what a compiled graph
and the native library run, has the formula of its composed convolution. `acmix_zoo.layers.complexity` counts by
definition instead. As everywhere in torch's counter, a multiply-accumulate counts as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from acmix_zoo.ops import aggregation, whole  # noqa: F401  (define the operators)

_Shape = Sequence[int]


@register_flop_formula(torch.ops.acmix_zoo.aggregate)
def _aggregate(value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    b, c, h, w = value
    return 2 * b * c * h * w * kernel**2


@register_flop_formula(torch.ops.acmix_zoo.aggregate_backward)
def _aggregate_backward(grad: _Shape, value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    return 2 * _aggregate(value, weight, kernel)  # one sum for the value, one for the weights


@register_flop_formula(torch.ops.acmix_zoo.acmix)
def _acmix(
    x: _Shape,
    weight: _Shape,
    bias: _Shape | None,
    pe: _Shape | None,
    fc: _Shape | None,
    shift: _Shape | None,
    alpha: _Shape | None,
    offset: _Shape | None,
    heads: int,
    kernel: int,
    stride: int,
    *_: Any,
    **__: Any,
) -> int:
    b, c, h, w = x
    channels = weight[0] // 3
    macs = b * h * w * c * 3 * channels
    strided = b * -(-h // stride) * -(-w // stride) * channels
    if pe is not None:
        macs += strided * 2 * kernel**2
    if shift is not None:
        macs += strided * shift[-1] ** 2 * 3 * heads
    return 2 * macs


@register_flop_formula(torch.ops.acmix_zoo.acmix_backward)
def _acmix_backward(grad: _Shape, kept: _Shape, *arguments: Any, **_: Any) -> int:
    return 2 * _acmix(*arguments)  # the gradient of each product is two products
