"""Choose the backend, the tile and the batch chunk for a shape, and explain the choice.

All backends compute the same function, so these choices only affect time and memory. docs/performance.md describes the
measurements that the constants are based on. `explain_plan` describes the choice for a layer in words. To override it,
use `use_backend("tiles")` or the environment variable ACMIX_BACKEND=tiles.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import lru_cache
from typing import Literal, NamedTuple

import torch

from acmix_zoo.ops.backends.native.layer import unsupported_kind_reason
from acmix_zoo.ops.backends.native.library import instruction_set
from acmix_zoo.ops.backends.triton import attention as triton
from acmix_zoo.ops.projection import explain_projection
from acmix_zoo.ops.sliding_window import SlidingWindow, key_extent
from acmix_zoo.ops.tracing import ceil_div

BACKENDS = (
    "reference",  # attention and convolution as printed in the paper
    "global",  # every query is compared with every position of the feature map, under a mask
    "tiles",  # the feature map is cut into tiles, and each tile is compared with the keys around it
    "offset",  # one column of the window at a time, in plain operators
    "triton",  # a GPU kernel that visits the keys of every window, where it supports the feature map; backends/triton
    "native",  # the whole layer in C++, where it supports the tensors; see backends/native
    "python",  # the automatic choice between global and tiles, also where triton or native could run
)

# Largest number of positions for the global backend. On a 16×16 feature map, a tile would gather 196 of the 256 keys,
# which saves little compared with the time for the copies.
_GLOBAL_UP_TO = 256
# Tile (query rows, columns) for graphs compiled with dynamic sizes, where the tile cannot depend on the size.
_SYMBOLIC_TILE = (4, 8)
# The tile for each type of device. Other devices get the tile of `choose_tile`, whose costs were measured on a CPU. On
# an H200, 8×16 took 0.67 to 0.99 of the time of 4×7. 8×8 was up to 13 % faster than 8×16 in float32, and slower in most
# rows in bfloat16 (benchmarks/gpu.csv). On a GPU, large maps use tiles only where the triton backend cannot run.
TILES = {"cuda": (8, 16)}
# Cost of gathering one key into a tile, in units of one query-key product.
_KEY_GATHER_COST = 24
# Memory for one chunk of the batch on a CPU. Each step then finds the previous step's result in a cache, and no buffer
# is so large that the allocator requests fresh pages for it.
_CHUNK_BYTES = 16 << 20
# Number of input channels from which it is better to keep the projections than to recompute them for the gradient.
_KEEP_PROJECTIONS_FROM = 256

# A context variable, so that `use_backend` in one thread or asyncio task does not affect any other.
_DEFAULT = os.environ.get("ACMIX_BACKEND") or None
_forced: ContextVar[str | None] = ContextVar("acmix_backend", default=_DEFAULT)
# Whether `use_backend` has ever been called. Until then, the variable is not read, because code compiled by torch 2.11
# cannot read one. Afterwards, torch 2.11 can no longer compile layers without graph breaks in this process.
_is_used = False


@contextmanager
def use_backend(backend: str | None) -> Iterator[None]:
    """Force one of `BACKENDS` for every layer that runs in this context. None restores the automatic choice.

    "reference" replaces the attention and the convolution by the formulas of the paper, in plain operators. "native"
    runs the whole layer in C++ on a CPU. "python" is the automatic choice of a machine without a C++ compiler. The
    other backends only replace the attention. Where "triton" or "native" does not support a feature map or its tensors,
    the automatic choice is used.

    The choice affects only the calling thread or asyncio task. A backward pass that runs after the context has ended
    uses the backend of its forward pass, with two exceptions. A compiled graph uses the backend in force at that time.
    Gradient checkpointing on a GPU recomputes with the default backend, because autograd runs its backward pass in
    threads of its own. To force a backend there too, set the environment variable ACMIX_BACKEND.

    Raises:
        ValueError: there is no such backend.
    """
    global _is_used
    token = _forced.set(None if backend is None else _checked(backend))
    _is_used = True
    try:
        yield
    finally:
        _forced.reset(token)


def forced_backend() -> str | None:
    """Return the backend requested by `use_backend` or ACMIX_BACKEND, or None.

    Raises:
        ValueError: there is no such backend.
    """
    backend = _forced.get() if _is_used else _DEFAULT
    return None if backend is None else _checked(backend)


def _checked(backend: str) -> str:
    if backend not in BACKENDS:
        raise ValueError(
            f"Unknown backend {backend!r}. Expected one of {', '.join(BACKENDS)}. "
            "Change the argument of use_backend or the environment variable ACMIX_BACKEND."
        )
    return backend


class AttentionPlan(NamedTuple):
    """How the attention of a feature map is computed.

    Attributes:
        backend: one of `BACKENDS`.
        tile: rows and columns of queries per tile, or None if the backend does not use tiles.
        reason: why this backend was chosen; completes a sentence that begins with "because".
    """

    backend: str
    tile: tuple[int, int] | None
    reason: str


def plan_attention(h: int, w: int, window: SlidingWindow, device: str = "cpu") -> AttentionPlan:
    """Return the plan for the attention of a feature map (h, w) on a type of device."""
    backend = forced_backend()
    requested = "it was requested by use_backend or ACMIX_BACKEND"
    is_large = h * w > _GLOBAL_UP_TO
    can_be_triton = backend == "triton" or (backend in (None, "native") and device == "cuda" and is_large)
    # the native backend runs whole layers; only layers that it does not support reach this function
    if backend is not None and backend not in ("triton", "native", "python"):
        reason = requested
    elif can_be_triton and triton.supports(h, w, window) and triton.is_usable(device):
        reason = requested if backend == "triton" else f"the map has more than {_GLOBAL_UP_TO} positions, on a GPU"
        backend = "triton"
    elif not is_large:
        backend, reason = "global", f"the feature map has at most {_GLOBAL_UP_TO} positions"
    else:
        backend, reason = "tiles", f"the feature map has more than {_GLOBAL_UP_TO} positions"
    if backend != "tiles":
        return AttentionPlan(backend, None, reason)
    if device in TILES:
        return AttentionPlan(backend, TILES[device], reason)
    if torch.compiler.is_compiling():
        return AttentionPlan(backend, _SYMBOLIC_TILE, reason)
    return AttentionPlan(backend, choose_tile(ceil_div(h, window.stride), ceil_div(w, window.stride), window), reason)


@lru_cache(maxsize=1024)
def choose_tile(ho: int, wo: int, window: SlidingWindow) -> tuple[int, int]:
    """Return the tile with the lowest estimated cost for (ho, wo) queries: query-key products plus copies of keys."""

    def cost(tile: tuple[int, int]) -> int:
        th, tw = tile
        queries = th * tw
        keys = key_extent(th, window) * key_extent(tw, window)
        return ceil_div(ho, th) * ceil_div(wo, tw) * keys * (queries + _KEY_GATHER_COST)  # type: ignore[no-any-return]

    return min(((th, tw) for th in range(3, 9) for tw in range(3, 9)), key=cost)


class BatchPlan(NamedTuple):
    """How a layer processes a batch.

    Attributes:
        chunk_size: number of images that are processed at a time.
        kept: which intermediate results are kept for the gradient. The rest is recomputed.
        reason: why; completes a sentence that begins with "because".
    """

    chunk_size: int
    kept: Literal["everything", "projections", "nothing"]
    reason: str


def plan_batch(
    shape: tuple[int, ...] | torch.Size,
    out_channels: int,
    window: SlidingWindow,
    *,
    itemsize: int = 4,
    device: str = "cpu",
) -> BatchPlan:
    """Return the plan for an input of `shape` (B, C, H, W), whose elements have `itemsize` bytes."""
    b, c, h, w = shape
    if torch.compiler.is_compiling():
        return BatchPlan(b, "everything", "the compiler plans the memory of the graph")
    if forced_backend() == "reference":
        return BatchPlan(b, "everything", "the reference backend runs plain operators on the whole batch")
    if device != "cpu":
        return BatchPlan(b, "everything", f"only a CPU profits from chunks, and the device is {device}")
    image = _bytes_per_image(h, w, out_channels, window, itemsize)
    limit = _CHUNK_BYTES >> 20
    if b * image <= _CHUNK_BYTES:
        size = f"{b * image / 2**20:.1f} MiB"
        return BatchPlan(b, "everything", f"the batch needs {size} and the limit of a chunk is {limit} MiB")
    chunk_size = max(1, _CHUNK_BYTES // max(image, 1))
    reason = f"an image needs {image / 2**20:.1f} MiB and the limit of a chunk is {limit} MiB"
    return BatchPlan(chunk_size, "projections" if should_keep_projections(c) else "nothing", reason)


def should_keep_projections(in_channels: int) -> bool:
    """Return whether a layer that runs in chunks should keep its projections for the gradient, given its width."""
    return in_channels >= _KEEP_PROJECTIONS_FROM


def _bytes_per_image(h: int, w: int, out_channels: int, window: SlidingWindow, itemsize: int) -> int:
    """Return the size of the buffers for one image."""
    elements = 6 * h * w * out_channels  # the projections, and as much again for the results of the two paths
    if h * w > _GLOBAL_UP_TO:  # the keys and values of all tiles
        ho, wo = ceil_div(h, window.stride), ceil_div(w, window.stride)
        th, tw = choose_tile(ho, wo, window)
        keys = key_extent(th, window) * key_extent(tw, window)
        elements += ceil_div(ho, th) * ceil_div(wo, tw) * keys * 2 * out_channels
    return elements * itemsize


def explain_plan(
    shape: tuple[int, ...] | torch.Size,
    out_channels: int,
    *,
    kernel_att: int = 7,
    stride: int = 1,
    dilation: int = 1,
    heads: int = 4,
    itemsize: int = 4,
    device: str = "cpu",
) -> str:
    """Describe in words how an `ACmix2d` layer processes an input, and why.

    Args:
        shape: shape of the input, (B, C, H, W).
        out_channels, kernel_att, stride, dilation, heads: arguments of the layer.
        itemsize: bytes per element.
        device: type of the device, such as "cpu" or "cuda".

    >>> print(explain_plan((8, 512, 7, 7), 512))  # doctest: +ELLIPSIS
    layer: ...
    attention: global backend, because the feature map has at most 256 positions
    batch: 8 of 8 images per chunk, because the batch needs 4.6 MiB and the limit of a chunk is 16 MiB
    gradient: intermediate results are kept
    projection: ...
    """
    window = SlidingWindow(kernel_att, stride, dilation)
    attention = plan_attention(shape[2], shape[3], window, device)
    lines = [f"layer: {_explain_native(itemsize, device, heads)}"]
    lines += [f"attention: {attention.backend} backend, because {attention.reason}"]
    if attention.tile is not None:
        (th, tw), (kh, kw) = attention.tile, (key_extent(n, window) for n in attention.tile)
        ratio = kh * kw / kernel_att**2
        lines.append(f"tiles: {th}×{tw} queries share {kh}×{kw} keys, {ratio:.1f} times the keys of one window")
    batch = plan_batch(shape, out_channels, window, itemsize=itemsize, device=device)
    lines.append(f"batch: {min(batch.chunk_size, shape[0])} of {shape[0]} images per chunk, because {batch.reason}")
    gradient = {
        "everything": "intermediate results are kept",
        "projections": f"projections are kept, because recomputing those of {shape[1]} channels would take too long",
        "nothing": f"everything is recomputed, because projecting {shape[1]} channels again is cheap",
    }
    lines.append(f"gradient: {gradient[batch.kept]}")
    macs = min(batch.chunk_size, shape[0]) * math.prod(shape[1:]) * 3 * out_channels
    return "\n".join([*lines, f"projection: {explain_projection(macs, device)}"])


def _explain_native(itemsize: int, device: str, heads: int) -> str:
    """Describe whether the native backend runs a layer, and if not, why."""
    reason = native_unsupported_reason(itemsize, device, heads)
    if reason is not None:
        return f"Python, because {reason}"
    return f"native ({instruction_set()}), in one pass. The lines below apply to tensors that it does not support"


def native_unsupported_reason(itemsize: int = 4, device: str = "cpu", heads: int = 4) -> str | None:
    """Return why the native backend does not run a layer, or None if it does.

    The arguments are those of `explain_plan`.
    """
    if forced_backend() not in (None, "native"):
        return f"the backend {forced_backend()!r} was requested by use_backend or ACMIX_BACKEND"
    if itemsize != 4:
        return f"the native library computes in float32; these elements have {itemsize} bytes"
    return unsupported_kind_reason(device, torch.float32, heads)


def backend_name(itemsize: int = 4, device: str = "cpu") -> str:
    """Return the backend of `ACmix2d` layers with four heads: the forced one, or else "native" or "python".

    The arguments are those of `explain_plan`.
    """
    if native_unsupported_reason(itemsize, device) is None:
        return "native"
    forced = forced_backend()
    return "python" if forced in (None, "native") else forced
