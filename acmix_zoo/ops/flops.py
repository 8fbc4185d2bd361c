"""FLOP formulas for `torch.utils.flop_counter.FlopCounterMode`, which would otherwise count our operators as zero.

Operators are counted by their definition, not by the arithmetic of their implementation; see `acmix_zoo.layers.cost`.
As everywhere in torch's counter, a multiply-accumulate counts as two.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from acmix_zoo.ops import aggregation, whole  # noqa: F401  (these define the operators)

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
    x: _Shape, weight: _Shape, bias: Any, pe: Any, fc: Any, shift: _Shape | None, alpha: Any, offset: Any,
    heads: int, kernel: int, stride: int, dilation: int, keep: bool = False, **_: Any,
) -> int:  # fmt: skip
    b, c, h, w = x
    out, full, strided = weight[0] // 3, h * w, -(-h // stride) * -(-w // stride)
    macs = full * 3 * c * out
    if pe is not None:
        macs += strided * 2 * kernel**2 * out
    if shift is not None:
        side = shift[-1]
        macs += full * 3 * side**2 * out + strided * side**4 * out
    return 2 * b * macs


@register_flop_formula(torch.ops.acmix_zoo.acmix_backward)
def _acmix_backward(grad: _Shape, kept: _Shape, *args: Any, wanted: Any = None, **_: Any) -> int:
    return 2 * _acmix(*args[:12])
