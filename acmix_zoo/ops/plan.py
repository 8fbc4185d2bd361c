"""Which form of the operator serves which map, and why.

The forms compute the same function, so this file is about time and memory alone; what its numbers rest on is in
docs/performance.md. `explain_plan` says what is chosen for a layer; `use_form("tiles")`, or the environment variable
ACMIX_FORM=tiles, forces a form.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from functools import lru_cache

import torch

from acmix_zoo.ops.native.layer import is_available
from acmix_zoo.ops.native.library import instruction_set
from acmix_zoo.ops.projection import explain_projection

FORMS = ("reference", "global", "tiles", "offset", "native")

# Positions of a map up to which each query may as well see all of them: at 16², tiles would see 196 keys of the 256,
# and pay for gathering them.
_GLOBAL_UP_TO = 256
# When sizes are symbols (compile) the tile cannot depend on them.
_SYMBOLIC_TILE = (4, 8)
# The tile of (th, tw) queries for each type of device. Other devices use the tile from `choose_tile`, whose costs were
# measured on a CPU. `make bench-gpu` measures 4×7, 8×8 and 8×16 on a GPU, so that an entry for "cuda" can be added.
TILES: dict[str, tuple[int, int]] = {}
# What a chunk of the batch may take on a CPU, so that one step of the layer finds the last one's result in a cache, and
# no buffer is so large that the allocator fetches fresh pages for it.
_CHUNK_BYTES = 16 << 20
# Input channels from which projecting again for the gradient costs more time than keeping the projections is worth.
_KEEP_FROM = 256

# A context variable, so that `use_form` in one thread or asyncio task does not affect any other.
_forced: ContextVar[str | None] = ContextVar("acmix_form", default=os.environ.get("ACMIX_FORM") or None)


@contextmanager
def use_form(form: str | None) -> Iterator[None]:
    """Force a form of the operator, one of `FORMS`, for every layer that runs within this context; None forces nothing.

    "reference" runs attention and convolution as printed in the paper, by plain operators that also have second
    derivatives. "native" runs the whole layer in C++ where that is possible, and is the default there. The others are
    the fast forms of the attention in PyTorch's operators.

    It only affects the calling thread or asyncio task. A backward pass outside the context uses the form of its forward
    pass. Gradient checkpointing on a GPU is an exception: autograd runs the backward pass in its own threads, where
    `torch.utils.checkpoint` recomputes with the default form. To force a form in this case, set the environment
    variable ACMIX_FORM, which applies everywhere.

    Raises:
        ValueError: no such form.
    """
    token = _forced.set(form if form is None else _known(form))
    try:
        yield
    finally:
        _forced.reset(token)


def forced_form() -> str | None:
    """The form that `use_form` or ACMIX_FORM asks for, or None.

    Raises:
        ValueError: no such form.
    """
    form = _forced.get()
    return form if form is None else _known(form)


def _known(form: str) -> str:
    if form not in FORMS:
        raise ValueError(f"use_form (or ACMIX_FORM): expected one of {', '.join(FORMS)}, got {form!r}")
    return form


@dataclass(frozen=True)
class AttentionPlan:
    """A form of the attention, its tile of (th, tw) queries if it has one, and the reason in words."""

    form: str
    tile: tuple[int, int] | None
    why: str


def plan_attention(
    h: int, w: int, kernel: int, stride: int = 1, dilation: int = 1, device: str = "cpu"
) -> AttentionPlan:
    """The form for a map of (h, w)."""
    form, why = forced_form(), "use_form or ACMIX_FORM asks for it"
    if form in (None, "native"):  # "native" is a form of the whole layer; here, it could not run
        small = h * w <= _GLOBAL_UP_TO
        form = "global" if small else "tiles"
        why = f"the map has {'at most' if small else 'more than'} {_GLOBAL_UP_TO} positions"
    if form != "tiles":
        return AttentionPlan(form, None, why)
    if device in TILES:
        return AttentionPlan(form, TILES[device], why)
    if torch.compiler.is_compiling():
        return AttentionPlan(form, _SYMBOLIC_TILE, why)
    return AttentionPlan(form, choose_tile(-(-h // stride), -(-w // stride), kernel, stride, dilation), why)


def halo(queries: int, kernel: int, stride: int, dilation: int) -> int:
    """Keys along one axis that a run of `queries` queries sees."""
    return (queries - 1) * stride + (kernel - 1) * dilation + 1


@lru_cache(maxsize=1024)
def choose_tile(ho: int, wo: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The tile with the least work: products of queries and keys, and what each key costs besides."""

    def work(tile: tuple[int, int]) -> int:
        keys = halo(tile[0], kernel, stride, dilation) * halo(tile[1], kernel, stride, dilation)
        return -(-ho // tile[0]) * -(-wo // tile[1]) * keys * (tile[0] * tile[1] + 24)

    return min(((th, tw) for th in range(3, 9) for tw in range(3, 9)), key=work)


@dataclass(frozen=True)
class LayerPlan:
    """How a layer works off a batch.

    images: how many at a time.
    keep: what of it is kept for the gradient: "all", the "projections", or "nothing", where all is worked out again.
    why: in words.
    """

    images: int
    keep: str
    why: str


def keeps_projections(channels: int) -> bool:
    """Whether a cut batch's projections of so many input channels are kept for the gradient."""
    return channels >= _KEEP_FROM


def plan_layer(
    shape: tuple[int, ...] | torch.Size,
    channels: int,
    kernel: int,
    stride: int = 1,
    dilation: int = 1,
    *,
    itemsize: int = 4,
    device: str = "cpu",
) -> LayerPlan:
    """The plan for an input of `shape` (B, C, H, W) and `channels` outputs, of elements of `itemsize` bytes."""
    b, c, h, w = shape
    if torch.compiler.is_compiling():
        return LayerPlan(b, "all", "the compiler plans for itself")
    if forced_form() == "reference":
        return LayerPlan(b, "all", "the reference is plain operators on the whole batch")
    if device != "cpu":
        return LayerPlan(b, "all", f"chunks of the batch serve a processor's caches; this is {device}")
    image = 6 * h * w * channels  # the projections, and as much again for what comes of them
    if h * w > _GLOBAL_UP_TO:  # and the keys and values of all tiles
        ho, wo = -(-h // stride), -(-w // stride)
        th, tw = choose_tile(ho, wo, kernel, stride, dilation)
        keys = halo(th, kernel, stride, dilation) * halo(tw, kernel, stride, dilation)
        image += -(-ho // th) * -(-wo // tw) * keys * 2 * channels
    image *= itemsize
    images = max(1, _CHUNK_BYTES // max(image, 1))
    if b * image <= _CHUNK_BYTES:
        return LayerPlan(b, "all", f"the batch takes {b * image / 2**20:.1f} MiB, within {_CHUNK_BYTES >> 20}")
    size = f"an image takes {image / 2**20:.1f} MiB, a chunk {_CHUNK_BYTES >> 20}; for the gradient the projections of "
    if keeps_projections(c):
        return LayerPlan(images, "projections", f"{size}{c} channels are kept, since projecting again would cost more")
    return LayerPlan(images, "nothing", f"{size}{c} channels are made again")


def explain_plan(
    shape: tuple[int, ...] | torch.Size,
    channels: int,
    *,
    kernel: int = 7,
    stride: int = 1,
    dilation: int = 1,
    itemsize: int = 4,
    device: str = "cpu",
) -> str:
    """What an ACmix2d layer runs for an input of `shape` (B, C, H, W), and why, in words.

    The first line names the backend. The other lines are about the Python backend, which also runs whatever the native
    one does not take: more than 16 heads, subclasses of tensors, function transforms and second derivatives.

    Args:
        shape: (B, C, H, W) of the input.
        channels, kernel, stride, dilation: of the layer: out_channels, kernel_att, stride, dilation.
        itemsize: bytes of an element; device: "cpu", "cuda", ….

    >>> print(explain_plan((8, 512, 7, 7), 512))  # doctest: +ELLIPSIS
    backend: ...
    attention: global: the map has at most 256 positions
    batch: 8 of 8 images at a time: the batch takes 4.6 MiB, within 16
    projection: ...
    """
    window = (kernel, stride, dilation)
    attention = plan_attention(shape[2], shape[3], *window, device=device)
    what = attention.form
    if attention.tile is not None:
        keys = [halo(n, *window) for n in attention.tile]
        what += f", {attention.tile[0]}×{attention.tile[1]} queries a tile with {keys[0]}×{keys[1]} keys"
        what += f" ({keys[0] * keys[1] / kernel**2:.1f} for each that counts)"
    layer = plan_layer(shape, channels, *window, itemsize=itemsize, device=device)
    images = min(layer.images, shape[0])
    projection = explain_projection(math.prod((images, *shape[1:])) * 3 * channels, device)
    return (
        f"backend: {_explain_backend(itemsize, device)}\n"
        f"attention: {what}: {attention.why}\n"
        f"batch: {images} of {shape[0]} images at a time: {layer.why}\n"
        f"projection: {projection}"
    )


def _explain_backend(itemsize: int, device: str) -> str:
    form = forced_form()
    if form not in (None, "native"):
        return f"Python: use_form or ACMIX_FORM asks for {form!r}"
    if device != "cpu" or itemsize != 4:
        return "Python: the native backend computes in float32 on a CPU"
    if not is_available():
        return "Python: the native library is not here; with a C++ compiler (g++ or clang++), it is built at first use"
    return f"native ({instruction_set()}): the whole layer in one pass of C++"
