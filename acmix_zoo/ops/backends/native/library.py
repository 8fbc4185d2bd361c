"""Find or build the native library for this CPU, load it, and say why there is none."""

from __future__ import annotations

import ctypes
import os
import warnings
from ctypes import CDLL, POINTER, Structure, c_int64, c_void_p
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

import torch

from acmix_zoo.ops.backends.native.build import INSTRUCTION_SETS, BuildError, cached_library

# Libraries that a wheel carries, one for each instruction set.
PREBUILT = Path(__file__).parent / "lib"
# The version of the C interface that this code calls.
_VERSION = 4
# PyTorch's names of what the CPU can run, from the least to the most.
_CAPABILITIES = {"DEFAULT": "portable", "AVX2": "avx2", "AVX512": "avx512"}

_SIZES = (
    "batch", "height", "width", "inputs", "heads", "head_width", "kernel", "stride", "dilation", "conv_kernel",
    "threads",
)  # fmt: skip
_TENSORS = ("x", "weight", "bias", "positions", "kernels", "alpha", "offset", "out", "projections")
_GRADIENTS = ("grad", "d_x", "d_weight", "d_bias", "d_positions", "d_kernels", "d_alpha")


class Layer(Structure):
    """`Layer` of src/layer.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in _SIZES),
        ("parallel", c_void_p),
        *((name, c_void_p) for name in _TENSORS),
        ("alpha_is_scalar", c_int64),
        *((name, c_void_p) for name in _GRADIENTS),
    ]


_WINDOW_SIZES = (
    "batch", "height", "width", "heads", "head_width", "window_height", "window_width", "shift_rows", "shift_columns",
    "out_height", "out_width", "conv_kernel", "conv_is_rolled", "heads_first", "threads",
)  # fmt: skip
_WINDOW_TENSORS = (
    "projections", "bias", "mask", "fc", "kernels", "offset", "attention", "convolution",
    "d_attention", "d_convolution", "d_projections", "d_bias", "d_fc", "d_kernels",
)  # fmt: skip


class WindowLayer(Structure):
    """`WindowLayer` of src/window_layer.h, field by field."""

    _fields_ = [
        *((name, c_int64) for name in _WINDOW_SIZES),
        ("parallel", c_void_p),
        *((name, c_void_p) for name in _WINDOW_TENSORS),
    ]


def best_instruction_set() -> str:
    """Return the best instruction set that the CPU has."""
    return _CAPABILITIES.get(torch.backends.cpu.get_cpu_capability(), "portable")


def instruction_set() -> str:
    """Return the instruction set to use: the environment variable ACMIX_NATIVE_ISA, else the best that the CPU has.

    Raises:
        ValueError: ACMIX_NATIVE_ISA is unknown, or the CPU cannot run it.
    """
    best = best_instruction_set()
    forced = os.environ.get("ACMIX_NATIVE_ISA")
    if not forced:
        return best
    if forced not in INSTRUCTION_SETS:
        raise ValueError(f"ACMIX_NATIVE_ISA={forced!r} is unknown. Use one of {', '.join(INSTRUCTION_SETS)}.")
    order = list(_CAPABILITIES.values())
    if forced != "portable" and order.index(forced) > order.index(best):
        raise ValueError(f"ACMIX_NATIVE_ISA={forced!r}, but this CPU only has {best!r}. Use {best!r} or 'portable'.")
    return forced


class Loaded(NamedTuple):
    """The library of one instruction set.

    Attributes:
        library: the library, or None if there is none and it cannot be built.
        source: the path of its file, or else why there is none.
    """

    library: CDLL | None
    source: str


def library() -> CDLL | None:
    """Return the library, or None if there is none and it cannot be built. Warn once per process in that case."""
    return loaded().library


def loaded() -> Loaded:
    """Return the library with the path of its file, or with the reason why there is none."""
    return _load(instruction_set())


@lru_cache(maxsize=len(INSTRUCTION_SETS))
def _load(name: str) -> Loaded:
    try:
        prebuilt = str(PREBUILT / f"{name}.so")
        if os.path.exists(prebuilt):
            try:
                return Loaded(_checked(CDLL(prebuilt)), prebuilt)
            except OSError:  # for another architecture or an older C library: build it here
                pass
        cached = str(cached_library(name))
        return Loaded(_checked(CDLL(cached)), cached)
    except (OSError, BuildError) as error:
        warnings.warn(f"The native CPU kernel is not available: {error}. The slower Python backend runs.", stacklevel=2)
        return Loaded(None, str(error))


def _checked(loaded: CDLL) -> CDLL:
    loaded.acmix_version.restype = c_int64
    version = loaded.acmix_version()
    if version != _VERSION:
        raise OSError(f"the library has version {version} of the interface, not {_VERSION}")
    loaded.acmix_pixel.argtypes, loaded.acmix_pixel.restype = [c_int64, c_int64], c_int64
    for function in (loaded.acmix_forward, loaded.acmix_backward):
        function.argtypes, function.restype = [POINTER(Layer)], c_int64
    for function in (loaded.acmix_window_forward, loaded.acmix_window_backward):
        function.argtypes, function.restype = [POINTER(WindowLayer)], c_int64
    return loaded


@lru_cache(maxsize=1)
def parallel() -> int | None:
    """Return the address of the function that runs a task on PyTorch's OpenMP threads, or None for a single thread.

    It is looked up in the library that PyTorch's own CPU code is linked against. A second OpenMP library would start
    threads of its own, which PyTorch's setting of the number of threads does not affect.
    """
    try:
        return ctypes.cast(
            CDLL(str(Path(torch.__file__).parent / "lib" / "libtorch_cpu.so")).GOMP_parallel, c_void_p
        ).value
    except (OSError, AttributeError):  # another platform, or a PyTorch without OpenMP
        return None
