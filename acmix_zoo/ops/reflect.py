"""Indices of a line continued by reflection."""

from __future__ import annotations

import torch
from torch import Tensor

from acmix_zoo.ops.tracing import at_least


def reflect_index(positions: Tensor, size: int) -> Tensor:
    """Positions (int64, any shape) folded into `0 … size − 1` by reflection that does not repeat the edge.

    Reflection is periodic, so any overhang is defined: a map of 3 continues as 0 1 2 1 0 1 2 …, a map of 1 as 0 0 0 ….
    Where `torch.nn.functional.pad(mode="reflect")` runs, this is the same.
    """
    period = torch.full_like(positions, at_least(2 * size - 2, 1))  # ONNX needs a tensor as a modulus
    # Not `positions.remainder(period)`: inductor 2.15 takes its bounds for floats and fails on them as an index.
    folded = positions - period * torch.div(positions, period, rounding_mode="floor")
    return (size - 1) - (folded - (size - 1)).abs()


def reflected_range(start: int, length: int, size: int, device: torch.device) -> Tensor:
    """(length,): positions start, start + 1, … of a map of `size`, reflected."""
    return reflect_index(torch.arange(length, device=device) + start, size)


def window_index(queries: int, size: int, kernel: int, stride: int, dilation: int, device: torch.device) -> Tensor:
    """(kernel, queries): along one axis, the reflected position of every key of every query's window."""
    key = (torch.arange(kernel, device=device) - kernel // 2) * dilation
    return reflect_index(torch.arange(queries, device=device) * stride + key.unsqueeze(1), size)
