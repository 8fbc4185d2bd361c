"""Build the speed tables of README and docs/performance.md from the CSV files that `tools.suite` wrote.

python -m tools.speed_table          prints both tables
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import NamedTuple

import acmix_zoo
from acmix_zoo.bench.growth import describe_growth
from acmix_zoo.bench.results import Row, read_csv
from tools import make_parser
from tools.suite import SAN10, STRIDE_1, STRIDE_2, THREADS

BENCHMARKS = Path(acmix_zoo.__file__).parents[1] / "benchmarks"
AUTHORS = "authors' code"
NOT_MEASURED = "Not measured yet. Run `make bench`.\n"


class Comparison(NamedTuple):
    """A row of a speed table: two candidates of one CSV file, and how to print their ratio.

    Attributes:
        group: name of the CSV file, without its suffix.
        candidate, baseline: names of the two candidates in that file.
        mode: "inference" or "training".
        label, baseline_label: what the table calls the two candidates.
        target: the ratio we aim for, as printed.
        batch: preferred batch size. A candidate that ran out of memory is compared at its largest batch, per image.
        metric: "ms" or "peak_mib".
        is_gain: whether the ratio says by how much the candidate is better than the baseline (18.2× faster), or else
            how much it needs relative to the baseline (1.5× the time).
        threads: thread counts with a column of their own that has a value.
    """

    group: str
    candidate: str
    baseline: str
    mode: str
    label: str
    baseline_label: str
    target: str
    batch: int = 8
    metric: str = "ms"
    is_gain: bool = True
    threads: Sequence[int] = THREADS


def layer_comparisons() -> list[Comparison]:
    """Return the comparisons of single ACmix layers with the authors' code and with the reference backend."""
    found = []
    for (stride, batch, mode), targets in _LAYER_TARGETS.items():
        for shape, target in zip(STRIDE_1 if stride == 1 else STRIDE_2, targets, strict=True):
            label = f"ACmix2d {shape.replace('x', '×').replace('s2', ', stride 2')}"
            found.append(
                Comparison("layer", f"acmix2d:{shape}", f"released:{shape}", mode, label, AUTHORS, f"{target}×", batch)
            )
    for mode, target in (("inference", 33), ("training", 15)):
        for baseline, name in (("released:64x56", AUTHORS), ("acmix2d:64x56@reference", "reference backend")):
            found.append(
                Comparison("layer", "acmix2d:64x56", baseline, mode, "ACmix2d 64×56", name, f"{target}×", 8, "peak_mib")
            )
    return found


def aggregation_comparisons() -> list[Comparison]:
    """Return the comparisons of SAN's aggregation with a version that unfolds the value."""
    found = []
    for shape, mode in product(SAN10, ("inference", "training")):
        label = f"SAN aggregation {shape.replace('x', '×').replace('k3', ', 3×3')}"
        names = ("aggregation", f"aggregate:{shape}", f"unfold:{shape}", mode, label, "unfold")
        found.append(Comparison(*names, "3×"))
        found.append(Comparison(*names, "5×", metric="peak_mib", threads=(2,)))
    return found


def network_comparisons() -> list[Comparison]:
    """Return the comparisons of whole networks, eager and compiled."""
    authors, plain, swin = "acmix_resnet50@released", "resnet50", "swin_tiny_patch4_window7_224"
    rows = (
        ("acmix_resnet50", authors, 8, "inference", "ms", "10×"),
        ("acmix_resnet50", authors, 8, "training", "ms", "7×"),
        ("acmix_resnet50", authors, 8, "training", "peak_mib", "6×"),
        ("acmix_resnet50", plain, 8, "inference", "ms", "1.2×"),
        ("acmix_resnet50", plain, 8, "training", "ms", "1.3×"),
        ("acmix_resnet50", plain, 8, "training", "peak_mib", "1.1×"),
        ("acmix_swin_t", swin, 1, "inference", "ms", "1.05×"),
        ("acmix_swin_t", swin, 8, "inference", "ms", "1.05×"),
        ("acmix_swin_t", swin, 8, "training", "ms", "1.10×"),
    )
    found = []
    for name, baseline, batch, mode, metric, target in rows:
        label = AUTHORS if baseline == authors else f"`{baseline}`"
        threads = THREADS if metric == "ms" else (2,)
        is_gain = baseline == authors
        found.append(
            Comparison("networks", name, baseline, mode, f"`{name}`", label, target, batch, metric, is_gain, threads)
        )
    for name, mode in product(("acmix_resnet50", "acmix_swin_t"), ("inference", "training")):
        names = ("compile", f"{name}+compile", name, mode, f"`{name}`, compiled", "eager")
        found.append(Comparison(*names, "1×", is_gain=False, threads=(2,)))
    return found


# The smallest speed-up over the authors' code that we aim for, by (stride, batch, mode), for each shape.
_LAYER_TARGETS: dict[tuple[int, int, str], tuple[float, ...]] = {
    (1, 8, "inference"): (22, 20, 16, 16),
    (1, 8, "training"): (12, 12, 9, 11),
    (2, 8, "inference"): (10, 8, 6),
    (2, 8, "training"): (7, 5.5, 4.5),
    (1, 1, "inference"): (20, 12, 6, 5),
    (1, 1, "training"): (11, 5, 4, 3),
}


def speed_table(folder: Path = BENCHMARKS) -> str:
    """Return Markdown with the machine, every comparison beside its target, and the growth of time and memory."""
    comparisons = [*layer_comparisons(), *aggregation_comparisons(), *network_comparisons()]
    if not (folder / "machine.json").exists():
        return NOT_MEASURED
    lines = [
        _machine_line(folder),
        "",
        "| benchmark | baseline | target | 2 threads | 1 thread |",
        "|---|---|---|---|---|",
    ]
    for found in comparisons:
        if (folder / f"{found.group}.csv").exists():
            target = f"{'≥' if found.is_gain else '≤'} {found.target}"
            lines.append(
                f"| {_label(found)} | {found.baseline_label} | {target} | {' | '.join(_cells(found, folder))} |"
            )
    if (folder / "growth.csv").exists():
        rows = read_csv(folder / "growth.csv")
        for name in dict.fromkeys(row.candidate for row in rows):
            sentences = describe_growth([row for row in rows if row.candidate == name], name.rpartition(" ")[2])
            lines += ["", *(f"{sentence}  " for sentence in sentences)]
    return "\n".join(lines) + "\n"


def speed_summary(folder: Path = BENCHMARKS) -> str:
    """Return Markdown with README's four rows: whole networks against the authors' code and against plain networks."""
    if not (folder / "machine.json").exists():
        return NOT_MEASURED
    wanted = (
        ("acmix_resnet50", AUTHORS, "inference", "ms"),
        ("acmix_resnet50", AUTHORS, "training", "peak_mib"),
        ("acmix_resnet50", "`resnet50`", "inference", "ms"),
        ("acmix_swin_t", "`swin_tiny_patch4_window7_224`", "inference", "ms"),
    )
    lines = ["| benchmark | baseline | 2 threads | 1 thread |", "|---|---|---|---|"]
    for key in wanted:
        (found,) = [
            c
            for c in network_comparisons()
            if (c.candidate, c.baseline_label, c.mode, c.metric) == key and c.batch == 8
        ]
        lines.append(f"| {_label(found)} | {found.baseline_label} | {' | '.join(_cells(found, folder))} |")
    return "\n".join([*lines, "", _machine_line(folder)]) + "\n"


def _label(found: Comparison) -> str:
    return f"{found.label}, batch {found.batch}, {found.mode}{': peak memory' * (found.metric == 'peak_mib')}"


def _cells(found: Comparison, folder: Path) -> list[str]:
    """Return one cell for each of `THREADS`."""
    rows = read_csv(folder / f"{found.group}.csv")
    digits = 2 if not found.is_gain else 0 if found.metric == "peak_mib" and found.group != "networks" else 1
    words = {
        (True, "ms"): "× faster", (True, "peak_mib"): "× less", (False, "ms"): "× the time",
        (False, "peak_mib"): "× the memory",
    }[found.is_gain, found.metric]  # fmt: skip
    cells = []
    for threads in THREADS:
        ratio = _ratio(rows, found, threads)
        cells.append(f"{ratio:.{digits}f}{words}" if threads in found.threads and ratio == ratio else "")
    return cells


def _ratio(rows: list[Row], found: Comparison, threads: int) -> float:
    """Return the ratio of the metric per image, or NaN if one of the two has not been measured."""

    def per_image(name: str) -> float:
        matching = [r for r in rows if (r.candidate, r.mode, r.threads) == (name, found.mode, threads)]
        best = min((r for r in matching if r.batch <= found.batch), key=lambda r: found.batch - r.batch, default=None)
        return float(getattr(best, found.metric)) / best.batch if best else float("nan")

    candidate, baseline = per_image(found.candidate), per_image(found.baseline)
    return baseline / candidate if found.is_gain else candidate / baseline


def _machine_line(folder: Path) -> str:
    machine = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    peaks = [f"{gflops} GFLOP/s with {n} thread{'s' * (n != '1')}" for n, gflops in machine["matmul_gflops"].items()]
    return (
        f"{machine['cpu']}, {machine['cores']} cores. Matrix products reach {' and '.join(peaks)}. torch "
        f"{machine['torch']}, timm {machine['timm']}, float32, {machine['date']}. Times are medians of interleaved "
        "rounds. Peak memory is measured in a fresh process, above what that process needs at rest."
    )


if __name__ == "__main__":
    make_parser("speed_table", __doc__).parse_args()
    print(speed_summary(), speed_table(), sep="\n")
