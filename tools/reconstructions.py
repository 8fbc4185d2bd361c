"""What each way to put ACmix into SAN and PVT would cost, beside what was published; for docs/reconstructions.md."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import timm
import torch

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.published import PUBLISHED

# A candidate: what one layer of `width` adds, (parameters, multiplications a pixel).
Candidate = Callable[[int], tuple[float, float]]
_HEADS = 4  # as in the ResNet form; only 27 parameters a head depend on it

# The layer's value has `m` channels (a quarter of the block's), its q and k have m/4.
SAN_CANDIDATES: dict[str, Candidate] = {
    "A: q and k lifted to m channels, ACmix as it is (mixing to 9 maps, learnable grouped 3×3)": lambda m: (
        0.5 * m * m + 2 * m + 27 * _HEADS + 81 * m + 2,
        0.5 * m * m + 27 * m + 81 * m,
    ),
    "B: no lift: six pieces of m/4 channels, mixed to 9 maps, learnable grouped 3×3": lambda m: (
        54 + 81 * m + 2,
        13.5 * m + 81 * m,
    ),
    "C: q and k lifted, mixing to 9 maps, fixed shifts": lambda m: (
        0.5 * m * m + 2 * m + 27 * _HEADS + 2,
        0.5 * m * m + 27 * m + 9 * m,
    ),
    "D: v + lift([q, k]), depthwise 3×3": lambda m: (0.5 * m * m + 10 * m + 2, 0.5 * m * m + 9 * m),
    "**E: v + lift([q, k]), 3×3 weights shared by eight channels, as SAN's are**": lambda m: (
        0.5 * m * m + m + 9 * m / 8 + 2,
        0.5 * m * m + 9 * m,
    ),
    "F: v alone, depthwise 3×3": lambda m: (9 * m + 2, 9 * m),
}
_REDUCTION = {64: 64, 128: 16, 320: 4, 512: 1}  # positions of a patch
# C channels in heads of 64; multiplications at full resolution.
PVT_CANDIDATES: dict[str, Candidate] = {
    "**A: q, and k and v of each patch at all its positions**": lambda c: (27 * c / 64 + 9 + 81 * c + 2, 108 * c),
    "B: q alone": lambda c: (9 * c / 64 + 9 + 81 * c + 2, 90 * c),
    "C: q, and k and v projected once more at full resolution": lambda c: (
        2 * c * c + 27 * c / 64 + 9 + 81 * c + 2,
        2 * c * c + 108 * c,
    ),
    "D: the convolution at the reduced resolution": lambda c: (27 * c / 64 + 9 + 81 * c + 2, 108 * c / _REDUCTION[c]),
}
_SAN = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
_PVT = {"t": (2, 2, 2, 2), "s": (3, 4, 6, 3)}


def san_table() -> list[list[str]]:
    """Parameters and MACs of ACmix-SAN by every candidate; the baseline's MACs as they were published."""
    widths, pixels = (16, 64, 128, 256, 512), (112**2, 56**2, 28**2, 14**2, 7**2)
    base = {10: 1.865, 15: 2.583, 19: 3.259}
    rows = [["", *(f"SAN{depth}" for depth in _SAN)]]
    rows.append(["published", *_printed(f"acmix_san{depth}" for depth in _SAN)])
    for name, cost in SAN_CANDIDATES.items():
        cells = []
        for depth, layers in _SAN.items():
            params, macs = _added(cost, layers, widths, pixels)
            cells.append(_cell(_params(f"san{depth}_patchwise") + params, base[depth] + macs, f"acmix_san{depth}"))
        rows.append([name, *cells])
    return rows


def pvt_table() -> list[list[str]]:
    """Parameters and MACs of ACmix-PVT by every candidate."""
    widths, pixels = (64, 128, 320, 512), (56**2, 28**2, 14**2, 7**2)
    rows = [["", "PVT-T", "PVT-S"], ["published", *_printed(f"acmix_pvt_{size}" for size in _PVT)]]
    for name, cost in PVT_CANDIDATES.items():
        cells = []
        for (size, layers), plain, base in zip(_PVT.items(), ("pvt_tiny", "pvt_small"), (1.933, 3.815), strict=True):
            params, macs = _added(cost, layers, widths, pixels)
            cells.append(_cell(_params(plain) + params, base + macs, f"acmix_pvt_{size}"))
        rows.append([name, *cells])
    return rows


def ours_table() -> list[list[str]]:
    """What the networks here have, as they are counted, against what was published."""
    rows = [["", "parameters", "published", "", "MACs, as the baseline's were counted", "published", ""]]
    for name, plain, base in (
        *(
            (f"acmix_san{depth}", f"san{depth}_patchwise", macs)
            for depth, macs in ((10, 1.865), (15, 2.583), (19, 3.259))
        ),
        ("acmix_pvt_t", "pvt_tiny", 1.933),
        ("acmix_pvt_s", "pvt_small", 3.815),
    ):
        with torch.device("meta"):
            ours, theirs = complexity(timm.create_model(name)), complexity(timm.create_model(plain))
        of, macs = PUBLISHED[name], base + (ours.macs - theirs.macs) / 1e9
        params = [f"{ours.params:,}", of.params, _off(ours.params / 1e6, of.params)]
        rows.append([f"`{name}`", *params, f"{macs:.3f}G", of.macs, _off(macs, of.macs)])
    return rows


def _off(ours: float, printed: str) -> str:
    return f"{100 * (ours / float(printed[:-1]) - 1):+.1f} %"


def _added(cost: Candidate, layers: Sequence[int], widths: Sequence[int], pixels: Sequence[int]) -> tuple[float, float]:
    """(parameters, GMACs) that a candidate adds to all layers of a network."""
    costs = [(n, *cost(width), area) for n, width, area in zip(layers, widths, pixels, strict=True)]
    return sum(n * params for n, params, _, _ in costs), sum(n * macs * area for n, _, macs, area in costs) / 1e9


def _params(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def _printed(names: object) -> list[str]:
    return [f"{PUBLISHED[name].params}, {PUBLISHED[name].macs}" for name in names]  # type: ignore[attr-defined]


def _cell(params: float, macs: float, name: str) -> str:
    """Both totals, each with a mark where it rounds to the published digits."""
    cells = []
    for value, printed, unit in ((params / 1e6, PUBLISHED[name].params, "M"), (macs, PUBLISHED[name].macs, "G")):
        digits = len(printed[:-1].partition(".")[2])
        cells.append(f"{value:.2f}{unit}{' ✓' if f'{value:.{digits}f}' == printed[:-1] else ''}")
    return ", ".join(cells)
