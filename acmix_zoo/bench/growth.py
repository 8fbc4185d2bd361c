"""Measure how time and memory grow with the image size, the batch or the depth of a network."""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from dataclasses import replace

from torch import nn

from acmix_zoo.bench.candidates import Candidate, build, resize
from acmix_zoo.bench.results import Row

AXES = ("size", "batch", "depth")
"""The dimensions in which a candidate can grow."""

SIZES = (64, 128, 224, 448, 1024)
BATCHES = (1, 2, 4, 8, 16)
DEPTHS = (1, 2, 3, 4)

_UNITS = {"size": "pixels", "batch": "images", "depth": "MACs"}


def grow(candidate: Candidate, axis: str) -> list[Candidate]:
    """Return variants of a candidate that grow along an axis.

    For larger images the batch is smaller, so that the total number of pixels stays that of `candidate.batch` images of
    224². With a batch of one, the fixed cost would dominate for small images. The depth grows by multiplying the number
    of blocks in the first stage, which all have the same cost.

    Raises:
        ValueError: the axis is "depth" and the candidate is not a network with stages of blocks.
    """
    if axis == "batch":
        return [replace(candidate, batch=batch) for batch in BATCHES]
    if axis == "size":
        batches = [max(1, candidate.batch * 224**2 // size**2) for size in SIZES]
        return [resize(replace(candidate, batch=batch), size) for size, batch in zip(SIZES, batches, strict=True)]
    argument, (first, *others) = _find_stages(candidate)
    return [replace(candidate, model_kwargs={argument: [first * factor, *(1 for _ in others)]}) for factor in DEPTHS]


def _find_stages(candidate: Candidate) -> tuple[str, list[int]]:
    """Return the constructor's argument for the blocks per stage, and the number of blocks in each stage."""
    module = build(candidate).module
    # a ResNet has layer1 to layer4, a SAN also layer0
    named = [stage for name, stage in module.named_children() if re.fullmatch(r"layer\d", name)]
    layers = dict(module.named_children()).get("layers", nn.Sequential())
    swin = [getattr(stage, "blocks", None) for stage in layers.children()]
    for argument, stages in (("layers", named), ("depths", swin)):
        counts = [len(stage) for stage in stages if isinstance(stage, nn.Sequential)]
        if counts and len(counts) == len(stages):
            return argument, counts
    raise ValueError(
        f"bench: {candidate.name} has no stages of blocks, so it cannot grow in depth. "
        "Use --over depth with a network such as acmix_resnet50"
    )


def describe_growth(rows: Sequence[Row], axis: str) -> list[str]:
    """Return sentences with the fitted exponents and, for image sizes, time and memory per pixel relative to 224².

    Memory that was not measured, which is nan, is left out.
    """
    x = [_position(row, axis) for row in rows]
    # Batches differ between image sizes, so compare the cost of one image there.
    times = [row.ms / (row.batch if axis == "size" else 1) for row in rows]
    peaks = [row.peak_mib / (row.batch if axis == "size" else 1) for row in rows]
    unit = _UNITS[axis]
    growth = [f"time grows as {unit}^{fit_exponent(x, times):.2f}"]
    if has_memory := not any(map(math.isnan, peaks)):
        growth.append(f"peak memory as {unit}^{fit_exponent(x, peaks):.2f}")
    lines = [f"{rows[0].candidate}: {', '.join(growth)}"]
    if axis == "size":
        sides = [row.input.split("×")[-1] for row in rows]
        base = min(range(len(rows)), key=lambda i: abs(x[i] - 224**2))
        for metric, values in (("time", times), ("memory", peaks)) if has_memory else (("time", times),):
            per_pixel = [value / pixels for value, pixels in zip(values, x, strict=True)]
            ratios = [f"{v / per_pixel[base]:.2f}× at {side}²" for v, side in zip(per_pixel, sides, strict=True)]
            lines.append(f"{metric} per pixel, relative to {sides[base]}²: {', '.join(ratios)}")
    return lines


def _position(row: Row, axis: str) -> float:
    """Return where a row is on the axis: pixels per image, images per batch, or (for depth) MACs."""
    pixels = math.prod(int(side) for side in row.input.split("×")[1:])
    return {"size": pixels, "batch": row.batch, "depth": row.macs}[axis]


def fit_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """Return the p for which y = c·xᵖ fits best, by least squares of the logarithms."""
    log_x, log_y = [math.log(value) for value in x], [math.log(max(value, 1e-9)) for value in y]
    mean_x, mean_y = sum(log_x) / len(log_x), sum(log_y) / len(log_y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(log_x, log_y, strict=True))
    return covariance / sum((a - mean_x) ** 2 for a in log_x)
