"""Layers for the tests of the native backend, and the instruction sets that this CPU can run."""

from __future__ import annotations

from collections.abc import Sequence
from types import ModuleType
from typing import Any

import pytest
import torch
from hypothesis import strategies as st
from torch import Tensor, nn

from acmix_zoo import ACmix2d
from acmix_zoo.ops.backends.native.build import INSTRUCTION_SETS
from acmix_zoo.ops.backends.native.library import instruction_set
from acmix_zoo.ops.window_paths import WindowGeometry
from acmix_zoo.ops.windows import shifted_window_mask

BEST = instruction_set()
ORDER = ["portable", "avx2", "avx512"]
RUNNABLE = [name for name in INSTRUCTION_SETS if ORDER.index(name) <= ORDER.index(BEST)]
# The library of each other instruction set has to be compiled first.
EACH_ISA = [pytest.param(name, marks=() if name == BEST else pytest.mark.slow) for name in RUNNABLE]


def record_calls(native: ModuleType, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return a list to which each call of `native.forward` and `native.backward` will add its name."""
    seen: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(native, name)
        monkeypatch.setattr(
            native, name, lambda *args, name=name, original=original: seen.append(name) or original(*args)
        )
    return seen


def layer_of(inputs: int, outputs: int, seed: int = 0, **options: Any) -> ACmix2d:
    """Return a layer whose parameters all differ from their initial values, with projections of magnitude one."""
    torch.manual_seed(seed)
    layer = ACmix2d(inputs, outputs, **options)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    nn.init.normal_(layer.qkv.weight, std=inputs**-0.5)
    return layer.requires_grad_(False)


@st.composite
def random_layers(
    draw: st.DrawFn,
    kernel: int = 9,
    dilation: int = 3,
    heads: int = 9,
    size: int = 20,
    isas: Sequence[str] = RUNNABLE,
) -> tuple[ACmix2d, Tensor, str]:
    """Draw a layer with any geometry up to these limits, an input, and one of these instruction sets."""
    options = dict(
        heads=draw(st.integers(1, heads)),
        kernel_att=draw(st.sampled_from(range(1, kernel + 1, 2))),
        kernel_conv=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, dilation)),
        paths=draw(st.sampled_from(["both", "both", "attention", "convolution"])),
    )
    inputs, outputs = draw(st.integers(1, 20)), options["heads"] * draw(st.integers(1, heads))
    layer = layer_of(inputs, outputs, draw(st.integers(0, 99)), **options)
    x = torch.randn(draw(st.integers(1, 3)), inputs, draw(st.integers(1, size)), draw(st.integers(1, size)))
    return layer, x, draw(st.sampled_from(isas))


# Each side of a limit: vector width, blocks of queries and pixels, rows of a product, groups of heads, odd channels.
CASES: dict[str, tuple[tuple[int, ...], int, dict[str, Any]]] = {
    "7×7, one position": ((1, 8, 1, 1), 16, dict(heads=4)),
    "7×7, smaller than the window": ((2, 16, 5, 3), 16, dict(heads=4)),
    "7×7, ring of rows": ((2, 64, 40, 33), 64, dict(heads=4)),
    "7×7, stride 2": ((2, 16, 23, 18), 32, dict(heads=4, stride=2)),
    "7×7, stride 3, dilation 2": ((1, 8, 17, 19), 16, dict(heads=4, stride=3, dilation=2)),
    "3×3": ((2, 8, 9, 10), 32, dict(heads=4, kernel_att=3)),
    "5×5, convolution 5×5": ((1, 7, 9, 10), 12, dict(heads=4, kernel_att=5, kernel_conv=5)),
    "1×1, convolution 1×1": ((1, 3, 4, 9), 8, dict(heads=2, kernel_att=1, kernel_conv=1)),
    "11×11 on a row": ((1, 8, 1, 13), 8, dict(heads=1, kernel_att=11)),
    "three heads of five channels": ((2, 6, 9, 10), 15, dict(heads=3)),
    "eight heads": ((1, 8, 13, 6), 40, dict(heads=8, stride=2)),
    "sixteen heads of one channel": ((1, 4, 6, 7), 16, dict(heads=16)),
    "attention alone": ((2, 8, 9, 9), 24, dict(heads=6, paths="attention")),
    "convolution alone": ((2, 8, 9, 9), 24, dict(heads=6, paths="convolution")),
    "deep product": ((1, 256, 14, 15), 16, dict(heads=4)),
    "deep product of any width": ((1, 300, 3, 4), 16, dict(heads=4)),
    "empty batch": ((0, 8, 9, 9), 16, dict(heads=4)),
}


def problem(
    batch: int,
    grid: tuple[int, int],
    window: tuple[int, int],
    heads: int,
    width: int,
    shift: tuple[int, int] = (0, 0),
    crop: tuple[int, int] = (0, 0),
    kernel: int = 3,
    paths: str = "both",
    rolled: bool = True,
    heads_first: bool = False,
) -> tuple[list[Tensor | None], WindowGeometry]:
    """Return random projections, bias, mask, fc, kernels and offset for `grid` windows, and their geometry."""
    torch.manual_seed(0)
    (h, w), length = (n * side for n, side in zip(grid, window, strict=True)), window[0] * window[1]
    tensors: list[Tensor | None] = [torch.randn(batch, h, w, 3 * heads * width), None, None, None, None, None]
    if paths != "convolution":
        tensors[1] = torch.randn(heads, length, length)
        tensors[2] = shifted_window_mask((2 * window[0], 2 * window[1]), window, shift) if any(shift) else None
    if paths != "attention":
        tensors[3] = torch.randn(kernel**2, 3 * heads + 1) * 0.3
        tensors[4] = torch.randn(heads * width, kernel**2, kernel, kernel) * 0.3
        tensors[5] = torch.randn(heads * width) if paths == "both" else None
    return tensors, WindowGeometry(heads, window, shift, (h - crop[0], w - crop[1]), rolled, heads_first)
