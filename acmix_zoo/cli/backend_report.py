"""What `acmix-zoo info --backends` prints: which backend runs what on this machine, and how to get a faster one."""

from __future__ import annotations

import os
import warnings

import torch

from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.ops.backends.native.build import REQUIRED_COMPILER, find_compilers
from acmix_zoo.ops.backends.native.library import best_instruction_set, instruction_set, loaded
from acmix_zoo.ops.dispatch import forced_backend, native_unsupported_reason, plan_attention
from acmix_zoo.ops.sliding_window import SlidingWindow


def print_backends() -> None:
    """Print the native library, the backend of ACmix layers for each kind of input, and what to do for a faster one.

    Builds the native library if no process has done so before.

    Raises:
        ValueError: ACMIX_BACKEND or ACMIX_NATIVE_ISA has an unknown value.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # that there is no library, which is printed below
        library, path_or_reason = loaded()
    compilers = [f"{c}, {c.version.splitlines()[0] if c.version else 'cannot be run'}" for c in find_compilers()]
    print(f"Backend: {'automatic' if forced_backend() is None else f'{forced_backend()}, set by ACMIX_BACKEND'}")
    print(f"Instruction set: {instruction_set()}; the best one that this CPU supports is {best_instruction_set()}")
    print(f"Native library: {path_or_reason if library is not None else f'not available: {path_or_reason}'}")
    print(f"C++ compiler: {'; '.join(compilers) or 'none'}")
    rows: list[tuple[str, ...]] = [("ACmix2d layers", "up to 16×16 positions", "larger feature maps")]
    kinds = [("on a CPU in float32", 4, "cpu"), ("on a CPU in a different dtype or under autocast", 2, "cpu")]
    kinds += [(f"on {device}", 4, device) for device in ("cuda", "mps") if getattr(torch, device).is_available()]
    rows += [(name, *(_backend(side, itemsize, device) for side in (16, 17))) for name, itemsize, device in kinds]
    print_columns(rows)
    print(_advice(library is not None, bool(compilers)))


def _backend(side: int, itemsize: int, device: str) -> str:
    """Return the backend of a layer with a window of 7×7 on a feature map with `side` rows and columns."""
    if native_unsupported_reason(itemsize, device) is None:
        return "native"
    return plan_attention(side, side, SlidingWindow(7), device).backend


def _advice(has_library: bool, has_compiler: bool) -> str:
    """Return what the user can do for a faster backend."""
    if forced_backend() not in (None, "native"):
        return "To use the fastest backend, unset ACMIX_BACKEND."
    if not has_library and has_compiler:
        return f"To use the faster native backend, set CXX to a working C++ compiler ({REQUIRED_COMPILER})."
    if not has_library:
        return f"To use the faster native backend, install a C++ compiler ({REQUIRED_COMPILER}), such as g++."
    if instruction_set() != best_instruction_set() and os.environ.get("ACMIX_NATIVE_ISA"):
        return f"To use {best_instruction_set()}, unset ACMIX_NATIVE_ISA."
    reason = native_unsupported_reason()
    if reason is None:
        return "This is the fastest choice on this machine."
    return f"The Python backend is used because {reason}."
