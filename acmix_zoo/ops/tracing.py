"""Detect that the operators are being recorded as a graph, and compute with sizes that may be dynamic.

PyTorch records graphs in several ways. `torch.compile` and `torch.export` use symbols for dynamic sizes and can be
detected through `torch.compiler`. `torch.jit.trace`, on which `torch.onnx.export(dynamo=False)` and TensorBoard's
`add_graph` are based, uses 0-d tensors for all sizes and records what is computed from them.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


def is_tracing() -> bool:
    """Return whether `torch.jit.trace` is recording."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined,no-untyped-call]


def is_exporting() -> bool:
    """Return whether a graph is being recorded for other programs, which may run it with other sizes."""
    return torch.compiler.is_exporting() or is_tracing()


def is_recording() -> bool:
    """Return whether a graph is being recorded, for a compiler or for export. Tensors must not be cached then."""
    return torch.compiler.is_compiling() or is_tracing()


def at_least(size: Any, minimum: int) -> Any:
    """Return `max(size, minimum)` for a size that is an int, a symbol of a compiler, or a 0-d tensor of a trace."""
    if isinstance(size, int):  # also a symbol of torch.compile, whose version 2.11 cannot compile sym_max of numbers
        return max(size, minimum)
    return size.clamp(min=minimum) if isinstance(size, Tensor) else torch.sym_max(size, minimum)


def at_most(size: Any, maximum: int) -> Any:
    """Return `min(size, maximum)`, see `at_least`."""
    if isinstance(size, int):
        return min(size, maximum)
    return size.clamp(max=maximum) if isinstance(size, Tensor) else torch.sym_min(size, maximum)


def ceil_div(size: Any, divisor: int) -> Any:
    """Return `size / divisor`, rounded up, for a size of any kind.

    This does not use `-(-size // divisor)`, because ONNX rounds towards zero and would round negative numerators up.
    """
    return (size + divisor - 1) // divisor


def is_dynamic(*sizes: Any) -> bool:
    """Return whether one of the sizes is dynamic in an exported graph, so that code must not branch on it."""
    return is_exporting() and any(isinstance(size, Tensor | torch.SymInt) for size in sizes)


def unflatten(x: Tensor, dim: int, sizes: Sequence[Any]) -> Tensor:
    """Return `x.unflatten(dim, sizes)`.

    A trace uses `reshape` instead, because the TorchScript-based ONNX exporter turns all sizes after an `unflatten`
    into constants.
    """
    if not is_tracing():
        return x.unflatten(dim, tuple(sizes))  # type: ignore[no-any-return]
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def constant_size(size: Any) -> Any:
    """Return a size that is the same for every input, such as a number of channels, as an int, even in a trace.

    `torch.jit.trace` warns whenever a size becomes a Python number, because it could differ for another input. This
    function suppresses the warning, so that any other warning indicates a bug.
    """
    if not isinstance(size, Tensor):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return int(size)
