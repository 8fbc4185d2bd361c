"""What the operators ask when they run in order to be recorded as a graph.

PyTorch has several recorders. `torch.compile` and `torch.export` hand out symbols for open sizes and say so through
`torch.compiler`. `torch.jit.trace`, and `torch.onnx.export(dynamo=False)` and TensorBoard's `add_graph` which rest on
it, hand out 0-d tensors for all sizes and record what is computed from them.
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
    """Return whether a graph is being recorded that other programs run, at sizes that are not known yet."""
    return torch.compiler.is_exporting() or is_tracing()


def is_recording() -> bool:
    """Return whether a graph is being recorded, for a compiler or for export. Nothing may be remembered meanwhile."""
    return torch.compiler.is_compiling() or is_tracing()


def at_least(size: Any, minimum: int) -> Any:
    """Return `max(size, minimum)` for a size that is an int, a symbol of a compiler, or a 0-d tensor of a trace."""
    return size.clamp(min=minimum) if isinstance(size, Tensor) else torch.sym_max(size, minimum)


def at_most(size: Any, maximum: int) -> Any:
    """Return `min(size, maximum)`, see `at_least`."""
    return size.clamp(max=maximum) if isinstance(size, Tensor) else torch.sym_min(size, maximum)


def ceil_div(size: Any, by: int) -> Any:
    """Return `size / by`, rounded up, for a size of any kind.

    Not `-(-size // by)`: ONNX divides towards zero, so that a negative numerator is rounded the other way there.
    """
    return (size + by - 1) // by


def is_open(*sizes: Any) -> bool:
    """Return whether one of the sizes is left open in an exported graph, so that no decision may rest on it."""
    return is_exporting() and any(isinstance(size, Tensor | torch.SymInt) for size in sizes)


def unflatten(x: Tensor, dim: int, sizes: Sequence[Any]) -> Tensor:
    """Return `x.unflatten(dim, sizes)`.

    In a trace by `reshape`: the TorchScript-based ONNX exporter turns all sizes behind an `unflatten` into constants.
    """
    if not is_tracing():
        return x.unflatten(dim, tuple(sizes))  # type: ignore[no-any-return]
    return x.reshape(*x.shape[:dim], *sizes, *x.shape[dim + 1 :])


def in_format_of(x: Tensor, out: Tensor) -> Tensor:
    """Return `out`, which is channels_last, in the memory format of `x`: channels_last or contiguous."""
    last = x.is_contiguous(memory_format=torch.channels_last)
    if is_tracing():  # never a view, which TorchScript does not let a ReLU behind it change in place
        return out.clone(memory_format=torch.channels_last if last else torch.contiguous_format)
    return out if last else out.contiguous()


def fixed(size: Any) -> Any:
    """Return a size that is the same at every run, such as a number of channels, as an int also in a trace.

    `torch.jit.trace` warns where a size becomes a Python number, since another input would have another one. Such sizes
    pass through here, so that every warning that remains is a fault.
    """
    if not isinstance(size, Tensor):
        return size
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", torch.jit.TracerWarning)  # type: ignore[attr-defined]
        return int(size)
