"""Compute what each way to put ACmix into SAN and PVT would cost, for docs/reconstructions.md.

python -m tools.reconstructions          prints its tables
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import NamedTuple

import timm
import torch

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.published import PUBLISHED
from tools import make_parser


class Cost(NamedTuple):
    """Parameters and multiplications that a design adds: per layer and pixel, or in total."""

    params: float
    macs: float


Design = Callable[[int], Cost]
"""What one layer of a given width adds; the MACs are per pixel."""

_HEADS = 4  # as in the ResNets; only 27 parameters per head depend on it

# A layer's value has m channels (a quarter of the block's), its q and k have m/4.
SAN_DESIGNS: dict[str, Design] = {
    "A: q and k lifted to m channels, ACmix unchanged (mixing to 9 maps, learnable grouped 3×3)": lambda m: Cost(
        0.5 * m * m + 2 * m + 27 * _HEADS + 81 * m + 2, 0.5 * m * m + 27 * m + 81 * m
    ),
    "B: no lift: six pieces of m/4 channels, mixed to 9 maps, learnable grouped 3×3": lambda m: Cost(
        54 + 81 * m + 2, 13.5 * m + 81 * m
    ),
    "C: q and k lifted, mixing to 9 maps, fixed shifts": lambda m: Cost(
        0.5 * m * m + 2 * m + 27 * _HEADS + 2, 0.5 * m * m + 27 * m + 9 * m
    ),
    "D: v + lift([q, k]), depthwise 3×3": lambda m: Cost(0.5 * m * m + 10 * m + 2, 0.5 * m * m + 9 * m),
    "**E: v + lift([q, k]), 3×3 weights shared by eight channels, as in SAN**": lambda m: Cost(
        0.5 * m * m + m + 9 * m / 8 + 2, 0.5 * m * m + 9 * m
    ),
    "F: v alone, depthwise 3×3": lambda m: Cost(9 * m + 2, 9 * m),
}

_PATCH_POSITIONS = {64: 64, 128: 16, 320: 4, 512: 1}  # positions per patch, by width

# Layers of c channels with heads of 64 channels. MACs are per pixel at full resolution.
PVT_DESIGNS: dict[str, Design] = {
    "**A: q, and k and v of each patch at all its positions**": lambda c: Cost(27 * c / 64 + 9 + 81 * c + 2, 108 * c),
    "B: q alone": lambda c: Cost(9 * c / 64 + 9 + 81 * c + 2, 90 * c),
    "C: q, and k and v projected again at full resolution": lambda c: Cost(
        2 * c * c + 27 * c / 64 + 9 + 81 * c + 2, 2 * c * c + 108 * c
    ),
    "D: the convolution at the reduced resolution": lambda c: Cost(
        27 * c / 64 + 9 + 81 * c + 2, 108 * c / _PATCH_POSITIONS[c]
    ),
}


class Network(NamedTuple):
    """A reconstructed network.

    Attributes:
        acmix: its name.
        baseline: name of its plain counterpart.
        baseline_gmacs: MACs of the counterpart as published, in 10⁹.
        layers: number of layers per stage.
    """

    acmix: str
    baseline: str
    baseline_gmacs: float
    layers: tuple[int, ...]


SAN_NETWORKS = (
    Network("acmix_san10", "san10_patchwise", 1.865, (2, 1, 2, 4, 1)),
    Network("acmix_san15", "san15_patchwise", 2.583, (3, 2, 3, 5, 2)),
    Network("acmix_san19", "san19_patchwise", 3.259, (3, 3, 4, 6, 3)),
)
PVT_NETWORKS = (
    Network("acmix_pvt_t", "pvt_tiny", 1.933, (2, 2, 2, 2)),
    Network("acmix_pvt_s", "pvt_small", 3.815, (3, 4, 6, 3)),
)
# Width and number of pixels per stage.
_SAN_STAGES = ((16, 112**2), (64, 56**2), (128, 28**2), (256, 14**2), (512, 7**2))
_PVT_STAGES = ((64, 56**2), (128, 28**2), (320, 14**2), (512, 7**2))


def san_table() -> list[list[str]]:
    """Return parameters and MACs of ACmix-SAN with every design, based on the published MACs of the baseline."""
    return _design_table(SAN_DESIGNS, SAN_NETWORKS, ["SAN10", "SAN15", "SAN19"], _SAN_STAGES)


def pvt_table() -> list[list[str]]:
    """Return parameters and MACs of ACmix-PVT with every design, based on the published MACs of the baseline."""
    return _design_table(PVT_DESIGNS, PVT_NETWORKS, ["PVT-T", "PVT-S"], _PVT_STAGES)


def networks_table() -> list[list[str]]:
    """Return parameters and MACs of the networks in this project beside the published ones."""
    rows = [["", "parameters", "published", "deviation", "MACs, counted as the baseline's", "published", "deviation"]]
    for network in (*SAN_NETWORKS, *PVT_NETWORKS):
        with torch.device("meta"):
            acmix, plain = (complexity(timm.create_model(name)) for name in (network.acmix, network.baseline))
        published, gmacs = PUBLISHED[network.acmix], network.baseline_gmacs + (acmix.macs - plain.macs) / 1e9
        params = [f"{acmix.params:,}", published.params, _deviation(acmix.params / 1e6, published.params)]
        macs = [f"{gmacs:.3f}G", published.macs, _deviation(gmacs, published.macs)]
        rows.append([f"`{network.acmix}`", *params, *macs])
    return rows


def _design_table(
    designs: dict[str, Design],
    networks: Sequence[Network],
    titles: Sequence[str],
    stages: Sequence[tuple[int, int]],
) -> list[list[str]]:
    published = [PUBLISHED[network.acmix] for network in networks]
    rows = [["", *titles], ["published", *(f"{p.params}, {p.macs}" for p in published)]]
    for name, design in designs.items():
        cells = []
        for network in networks:
            added = _sum_costs(design, network.layers, stages)
            total = Cost(_count_params(network.baseline) + added.params, network.baseline_gmacs + added.macs / 1e9)
            cells.append(_format_total(total, network.acmix))
        rows.append([name, *cells])
    return rows


def _sum_costs(design: Design, layers: Iterable[int], stages: Iterable[tuple[int, int]]) -> Cost:
    """Return the parameters and MACs that a design adds to all layers of a network."""
    costs = [(count, design(width), pixels) for count, (width, pixels) in zip(layers, stages, strict=True)]
    return Cost(
        sum(count * cost.params for count, cost, _ in costs),
        sum(count * cost.macs * pixels for count, cost, pixels in costs),
    )


def _count_params(name: str) -> int:
    with torch.device("meta"):
        return sum(p.numel() for p in timm.create_model(name).parameters())


def _format_total(total: Cost, acmix: str) -> str:
    """Return parameters and GMACs, each with a check mark if it rounds to the published digits."""
    published, cells = PUBLISHED[acmix], []
    for value, printed, unit in ((total.params / 1e6, published.params, "M"), (total.macs, published.macs, "G")):
        digits = len(printed[:-1].partition(".")[2])
        cells.append(f"{value:.2f}{unit}{' ✓' if f'{value:.{digits}f}' == printed[:-1] else ''}")
    return ", ".join(cells)


def _deviation(value: float, printed: str) -> str:
    return f"{100 * (value / float(printed[:-1]) - 1):+.1f} %"


if __name__ == "__main__":
    make_parser("reconstructions", __doc__).parse_args()
    for table in (networks_table, san_table, pvt_table):
        print(table.__doc__, *(" | ".join(row) for row in table()), "", sep="\n")
