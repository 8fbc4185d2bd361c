"""Build the speed tables of README and docs/performance.md from the CSV files that `tools.suite` wrote.

python -m tools.speed_table          prints both tables
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import acmix_zoo
from acmix_zoo.bench.growth import describe_growth
from acmix_zoo.bench.results import Row, read_csv
from tools import make_parser
from tools.suite import SAN10, STRIDE_1, STRIDE_2, THREADS

BENCHMARKS = Path(acmix_zoo.__file__).parents[1] / "benchmarks"
LIMITED = "avx2"  # the folder in BENCHMARKS with what was measured without AVX-512
AUTHORS = "authors' code"
NOT_MEASURED = "Not measured yet. Run `make bench`.\n"


class Comparison(NamedTuple):
    """A row of a speed table: two candidates of one CSV file, and how to print their ratio.

    Attributes:
        group: name of the CSV file, without its suffix.
        candidate, baseline: names of the two candidates in that file.
        mode: "inference" or "training".
        label, baseline_label: what the table calls the two candidates.
        target: the ratio we aim for, as printed, or "".
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
            names = (f"acmix2d:{shape}", f"conv3x3:{shape}")
            found.append(Comparison("layer", *names, mode, label, "3×3 convolution", "", batch, is_gain=False))
            names = (f"acmix2d:{shape}", f"released:{shape}")
            found.append(Comparison("layer", *names, mode, label, AUTHORS, f"{target}×", batch))
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
        ("acmix_resnet50", plain, 8, "inference", "ms", "0.9×"),
        ("acmix_resnet50", plain, 1, "inference", "ms", "0.8×"),
        ("acmix_resnet50+deploy", f"{plain}+deploy", 8, "inference", "ms", "0.9×"),
        ("acmix_resnet50+deploy", f"{plain}+deploy", 1, "inference", "ms", "0.8×"),
        ("acmix_resnet50", plain, 8, "training", "ms", "1×"),
        ("acmix_resnet50", plain, 1, "training", "ms", "1×"),
        ("acmix_resnet50", plain, 8, "training", "peak_mib", "1×"),
        ("acmix_swin_t", swin, 8, "inference", "ms", "1×"),
        ("acmix_swin_t", swin, 1, "inference", "ms", "1×"),
        ("acmix_swin_t", swin, 8, "training", "ms", "1×"),
        ("acmix_swin_t", swin, 1, "training", "ms", "1×"),
        ("acmix_swin_t", swin, 8, "training", "peak_mib", "1×"),
        ("acmix_resnet50", authors, 8, "inference", "ms", "10×"),
        ("acmix_resnet50", authors, 8, "training", "ms", "7×"),
        ("acmix_resnet50", authors, 8, "training", "peak_mib", "6×"),
    )
    found = []
    for name, baseline, batch, mode, metric, target in rows:
        label = AUTHORS if baseline == authors else f"`{baseline.removesuffix('+deploy')}`"
        threads = THREADS if metric == "ms" else (2,)
        is_gain = baseline == authors
        found.append(
            Comparison(
                "networks", name, baseline, mode, _network_label(name), label, target, batch, metric, is_gain, threads
            )
        )
    for name, mode in product(("acmix_resnet50", "acmix_swin_t"), ("inference", "training")):
        names = ("compile", f"{name}+compile", name, mode, f"`{name}`, compiled", "eager")
        found.append(Comparison(*names, "1×", is_gain=False, threads=(2,)))
    return found


def _network_label(name: str) -> str:
    return f"`{name.removesuffix('+deploy')}`" + ", norms folded in both" * name.endswith("+deploy")


# The smallest speed-up over the authors' code that we aim for, by (stride, batch, mode), for each shape.
_LAYER_TARGETS: dict[tuple[int, int, str], tuple[float, ...]] = {
    (1, 8, "inference"): (100, 20, 16, 16),
    (1, 8, "training"): (40, 12, 9, 11),
    (2, 8, "inference"): (10, 8, 6),
    (2, 8, "training"): (7, 5.5, 4.5),
    (1, 1, "inference"): (20, 12, 6, 5),
    (1, 1, "training"): (11, 5, 4, 3),
    (2, 1, "inference"): (10, 8, 6),
    (2, 1, "training"): (7, 5.5, 4.5),
}


def speed_table(folder: Path = BENCHMARKS) -> str:
    """Return Markdown with the machine, every comparison beside its target, the throughput of small networks, the share
    of the peak that layers reach, and the growth of time and memory."""
    if not (folder / "machine.json").exists():
        return NOT_MEASURED
    folders = [path for path in (folder, folder / LIMITED) if (path / "machine.json").exists()]
    columns = [f"{_machine(path)['instructions']}, {_count_threads(n)}" for path in folders for n in THREADS]
    comparisons = [*network_comparisons(), *layer_comparisons(), *aggregation_comparisons()]
    rows = [["benchmark", "baseline", "target", *columns]]
    for found in comparisons:
        if (folder / f"{found.group}.csv").exists():
            target = found.target and f"{'≥' if found.is_gain else '≤'} {found.target}"
            cells = [cell for path in folders for cell in _cells(found, path)]
            rows.append([_label(found), found.baseline_label, target, *cells])
    lines = [_machine_line(folder), "", *_table(rows)]
    for group, table in (("small", _small_networks), ("layer", _peak_shares)):
        if (folder / f"{group}.csv").exists():
            lines += ["", *_table(table(read_csv(folder / f"{group}.csv")))]
    if (folder / "growth.csv").exists():
        growth = read_csv(folder / "growth.csv")
        for name in dict.fromkeys(row.candidate for row in growth):
            sentences = describe_growth([row for row in growth if row.candidate == name], name.rpartition(" ")[2])
            lines += ["", *(f"{sentence}  " for sentence in sentences)]
    return "\n".join(lines) + "\n"


def _small_networks(rows: list[Row]) -> list[list[str]]:
    """Return the training throughput of small networks: a row for each image size, and columns for each candidate."""
    names = dict.fromkeys(row.candidate for row in rows)
    table = [["training, batch 64", *(f"`{name}`, {_count_threads(n)}" for n in THREADS for name in names)]]
    for size in dict.fromkeys(row.input for row in rows):
        found = {(row.candidate, row.threads): row.images_per_s for row in rows if row.input == size}
        table.append([size, *(f"{found[name, n]:.0f} images/s" for n in THREADS for name in names)])
    return table


def _peak_shares(rows: list[Row]) -> list[list[str]]:
    """Return how much of the peak of matrix products a layer and the convolution that it replaces reach at batch 8."""
    modes = ("inference", "training")
    table = [["share of the peak, batch 8, 1 thread", *(f"{kind}, {m}" for kind in ("ACmix2d", "3×3") for m in modes)]]
    found = {(row.candidate, row.mode): row.peak_fraction for row in rows if (row.batch, row.threads) == (8, 1)}
    for shape in (*STRIDE_1, *STRIDE_2):
        shares = [found.get((f"{kind}:{shape}", mode)) for kind in ("acmix2d", "conv3x3") for mode in modes]
        cells = ["" if share is None else f"{100 * share:.0f} %" for share in shares]
        table.append([shape.replace("x", "×").replace("s2", ", stride 2"), *cells])
    return table


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
    rows = [["benchmark", "baseline", *map(_count_threads, THREADS)]]
    for key in wanted:
        (found,) = [
            c
            for c in network_comparisons()
            if (c.candidate, c.baseline_label, c.mode, c.metric) == key and c.batch == 8
        ]
        rows.append([_label(found), found.baseline_label, *_cells(found, folder)])
    return "\n".join([*_table(rows), "", _machine_line(folder)]) + "\n"


def _table(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return the lines of a Markdown table whose header is the first row."""
    header, *body = (f"| {' | '.join(row)} |" for row in rows)
    return [header, "|---" * len(rows[0]) + "|", *body]


def _count_threads(number: int) -> str:
    return f"{number} thread{'s' * (number > 1)}"


def _label(found: Comparison) -> str:
    return f"{found.label}, batch {found.batch}, {found.mode}{': peak memory' * (found.metric == 'peak_mib')}"


def _cells(found: Comparison, folder: Path) -> list[str]:
    """Return one cell for each of `THREADS`."""
    path = folder / f"{found.group}.csv"
    if not path.exists():
        return [""] * len(THREADS)
    rows = read_csv(path)
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


def _machine(folder: Path) -> dict[str, Any]:
    machine: dict[str, Any] = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    return machine


def _machine_line(folder: Path) -> str:
    machine = _machine(folder)
    peaks = [f"{gflops} GFLOP/s with {_count_threads(int(n))}" for n, gflops in machine["matmul_gflops"].items()]
    return (
        f"{machine['cpu']} with {machine['instructions']}, {machine['cores']} cores. Matrix products reach "
        f"{' and '.join(peaks)}. torch {machine['torch']}, timm {machine['timm']}, float32, {machine['date']}. "
        "Times are medians of interleaved rounds. Peak memory is that of one pass in a fresh process, minus the memory "
        "of the idle process."
    )


if __name__ == "__main__":
    make_parser("speed_table", __doc__).parse_args()
    print(speed_summary(), speed_table(), sep="\n")
