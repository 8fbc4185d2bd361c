"""FLOP formulas for `torch.utils.flop_counter.FlopCounterMode`, which would otherwise count SAN's sums as zero.

A compiled graph contains the sums as one operator. ACmix layers need no formula: the counter hooks all modules, so the
layers call their projections one by one, and the counter sees the arithmetic that runs. As everywhere in torch's
counter, a multiply-accumulate counts as two. `acmix_zoo.layers.complexity` counts by definition instead.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.flop_counter import register_flop_formula

from acmix_zoo.ops import aggregation  # noqa: F401  (defines the operators)

_Shape = Sequence[int]


@register_flop_formula(torch.ops.acmix_zoo.aggregate)
def _aggregate(value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    b, c, h, w = value
    return 2 * b * c * h * w * kernel**2


@register_flop_formula(torch.ops.acmix_zoo.aggregate_backward)
def _aggregate_backward(grad: _Shape, value: _Shape, weight: _Shape, kernel: int, **_: Any) -> int:
    return 2 * _aggregate(value, weight, kernel)  # one sum each for the value and the weight
