"""How time and memory grow with the image, the batch and the depth."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import replace

from acmix_zoo.bench.candidates import Case, build
from acmix_zoo.bench.measure import Row

SIZES = (64, 128, 224, 448, 1024)
BATCHES = (1, 2, 4, 8, 16)
DEPTHS = (1, 2, 3, 4)
OVER = ("size", "batch", "depth")


def growth_cases(case: Case, over: str) -> list[Case]:
    """The cases that `case` grows through.

    As images grow, the batch shrinks so that the pixels stay those of `case.batch` images of 224²: a growth by one
    image at a time would mostly show the fixed cost of the small ones. Depth multiplies the blocks of the first stage,
    which are alike.

    Raises:
        ValueError: depth of something that is not a network of stages.
    """
    if over == "batch":
        return [replace(case, batch=batch) for batch in BATCHES]
    if over == "size":
        batches = [max(1, case.batch * 224**2 // size**2) for size in SIZES]
        if ":" in case.contestant:
            name, _, rest = case.contestant.partition(":")
            channels, _, last = rest.partition("x")
            stride = f"s{last.partition('s')[2]}" if "s" in last else ""
            return [
                replace(case, batch=n, contestant=f"{name}:{channels}x{size}{stride}")
                for size, n in zip(SIZES, batches, strict=True)
            ]
        return [replace(case, batch=n, size=size) for size, n in zip(SIZES, batches, strict=True)]
    module = build(case)[0]
    found = [
        (name, stages) for name, stages in (("layers", "layer1"), ("depths", "layers.0.blocks")) if _has(module, stages)
    ]
    if not found or ":" in case.contestant:
        raise ValueError(
            f"bench: --over depth needs a network with stages of blocks, such as acmix_resnet50, got {case.contestant}"
        )
    name, first = found[0]
    start = len(module.get_submodule(first))  # type: ignore[arg-type]
    return [replace(case, kwargs=json.dumps({name: [start * times, 1, 1, 1]})) for times in DEPTHS]


def _has(module: object, path: str) -> bool:
    try:
        module.get_submodule(path)  # type: ignore[attr-defined]
    except AttributeError:
        return False
    return True


def fitted_exponent(x: Sequence[float], y: Sequence[float]) -> float:
    """p of the y = c·xᵖ that fits best (least squares of the logarithms)."""
    a, b = [math.log(v) for v in x], [math.log(max(v, 1e-9)) for v in y]
    mean_a, mean_b = sum(a) / len(a), sum(b) / len(b)
    return sum((s - mean_a) * (t - mean_b) for s, t in zip(a, b, strict=True)) / sum((s - mean_a) ** 2 for s in a)


def amount(row: Row, over: str) -> float:
    """What grows: pixels of an image, images of a batch, or (for depth) MACs."""
    pixels = math.prod(int(side) for side in row.input.split("×")[1:])
    return {"size": pixels, "batch": row.batch, "depth": row.macs}[over]


def growths(rows: Sequence[Row], over: str) -> list[str]:
    """Sentences: the fitted exponents, and for images the time and memory of a pixel against those at 224²."""
    x = [amount(row, over) for row in rows]
    ms, mib = (
        [getattr(row, what) / (row.batch if over == "size" else 1) for row in rows] for what in ("ms", "peak_mib")
    )
    unit = {"size": "pixels", "batch": "images", "depth": "MACs"}[over]
    lines = [
        f"{rows[0].contestant}: time grows as {unit}^{fitted_exponent(x, ms):.2f}, "
        f"peak memory as {unit}^{fitted_exponent(x, mib):.2f}"
    ]
    if over == "size":
        base = min(range(len(rows)), key=lambda i: abs(x[i] - 224**2))
        for what, values in (("time", ms), ("memory", mib)):
            per = [value / n for value, n in zip(values, x, strict=True)]
            ratios = ", ".join(
                f"{p / per[base]:.2f}× at {row.input.split('×')[-1]}²" for p, row in zip(per, rows, strict=True)
            )
            lines.append(f"{what} per pixel, relative to {rows[base].input.split('×')[-1]}²: {ratios}")
    return lines
