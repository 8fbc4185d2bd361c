"""README's table of speed and memory, from the files that `suite.py` wrote."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path

from acmix_zoo.bench.growth import growths
from acmix_zoo.bench.measure import Row
from acmix_zoo.bench.table import read_csv
from tools.suite import SAN10, STRIDE_1, STRIDE_2, THREADS

# The smallest ratio that is aimed at: time of the released form over ours, for (stride, batch, mode).
_FLOORS = {
    (1, 8, "inference"): (22, 20, 16, 16),
    (1, 8, "training"): (12, 12, 9, 11),
    (2, 8, "inference"): (10, 8, 6),
    (2, 8, "training"): (7, 5.5, 4.5),
    (1, 1, "inference"): (20, 12, 6, 5),
    (1, 1, "training"): (11, 5, 4, 3),
}


def speed_table(folder: Path) -> str:
    """Markdown: what was aimed at and what was measured, from the files in `folder`."""
    if not (folder / "layer.csv").exists():
        return "Not measured yet.\n"
    of = json.loads((folder / "machine.json").read_text(encoding="utf-8"))
    peak = ", ".join(f"{gflops} GFLOP/s with {n}" for n, gflops in of["matmul_gflops"].items())
    lines = [
        f"{of['cpu']}, {of['cores']} cores, matrix product {peak} threads; torch {of['torch']}, timm {of['timm']}, "
        f"float32, {of['date']}. Medians of interleaved rounds; memory is the peak of a fresh process above its rest.",
        "",
        "| measured | against | aim | 2 threads | 1 thread |",
        "|---|---|---|---|---|",
    ]
    rows = read_csv(folder / "layer.csv")
    for (stride, batch, mode), floors in _FLOORS.items():
        for shape, floor in zip(STRIDE_1 if stride == 1 else STRIDE_2, floors, strict=True):
            label = f"ACmix2d {shape.replace('x', '×').replace('s2', ', stride 2')}, batch {batch}, {mode}"
            ratios = [_ratio(rows, f"released:{shape}", f"acmix2d:{shape}", batch, mode, t) for t in THREADS]
            lines.append(f"| {label} | released form | ≥ {floor}× | {ratios[0]:.1f}× | {ratios[1]:.1f}× |")
    for mode, share in (("inference", 33), ("training", 15)):
        for against, name in (("released:64x56", "released form"), ("acmix2d:64x56@reference", "readable reference")):
            ratio = [_ratio(rows, against, "acmix2d:64x56", 8, mode, t, "peak_mib") for t in THREADS]
            shares = f"≤ 1/{share} | 1/{ratio[0]:.0f} | 1/{ratio[1]:.0f}"
            lines.append(f"| ACmix2d 64×56, batch 8, {mode}: peak memory | {name} | {shares} |")
    if (folder / "aggregation.csv").exists():
        rows = read_csv(folder / "aggregation.csv")
        for shape, mode in product(SAN10, ("inference", "training")):
            label = f"SAN's sums {shape.replace('x', '×').replace('k3', ', 3×3')}, batch 8, {mode}"
            names = (f"unfold:{shape}", f"aggregate:{shape}", 8, mode)
            faster = [_ratio(rows, *names, t) for t in THREADS]
            lines.append(f"| {label} | unfold form | ≥ 3× | {faster[0]:.1f}× | {faster[1]:.1f}× |")
            lines.append(
                f"| {label}: peak memory | unfold form | ≤ 1/5 | 1/{_ratio(rows, *names, 2, 'peak_mib'):.0f} | |"
            )
    rows = read_csv(folder / "networks.csv")
    for name, against, batch, mode, what, aim in _NETWORKS:
        factor = "×" if what == "ms" else "× the memory"
        if against.endswith("@released"):
            ratios = [_ratio(rows, against, name, batch, mode, t, what) for t in THREADS]
            cells = [f"{ratio:.1f}{factor} less" for ratio in ratios]
        else:
            ratios = [_ratio(rows, name, against, batch, mode, t, what) for t in THREADS]
            cells = [f"{ratio:.2f}{factor}" for ratio in ratios]
        cells = ["" if cell.startswith("nan") else cell for cell in cells]
        lines.append(f"| `{name}`, batch {batch}, {mode} | `{against}` | {aim} | {cells[0]} | {cells[1]} |")
    if (folder / "compile.csv").exists():
        rows = read_csv(folder / "compile.csv")
        for name, mode in product(("acmix_resnet50", "acmix_swin_t"), ("inference", "training")):
            compiled = _ratio(rows, f"{name}+compile", name, 8, mode, 2)
            lines.append(f"| `{name}` compiled, batch 8, {mode} | eager | ≤ 1× | {compiled:.2f}× | |")
    if (folder / "growth.csv").exists():
        rows = read_csv(folder / "growth.csv")
        for name in dict.fromkeys(row.contestant for row in rows):
            sentences = growths([row for row in rows if row.contestant == name], name.rpartition(" ")[2])
            lines += ["", *(f"{sentence}  " for sentence in sentences)]
    return "\n".join(lines) + "\n"


_NETWORKS = (
    ("acmix_resnet50", "acmix_resnet50@released", 8, "inference", "ms", "≥ 10× less"),
    ("acmix_resnet50", "acmix_resnet50@released", 8, "training", "ms", "≥ 7× less"),
    ("acmix_resnet50", "resnet50", 8, "inference", "ms", "≤ 1.2×"),
    ("acmix_resnet50", "resnet50", 8, "training", "ms", "≤ 1.3×"),
    ("acmix_resnet50", "acmix_resnet50@released", 8, "training", "peak_mib", "≥ 6× less"),
    ("acmix_resnet50", "resnet50", 8, "training", "peak_mib", "≤ 1.1×"),
    ("acmix_swin_t", "swin_tiny_patch4_window7_224", 1, "inference", "ms", "≤ 1.05×"),
    ("acmix_swin_t", "swin_tiny_patch4_window7_224", 8, "inference", "ms", "≤ 1.05×"),
    ("acmix_swin_t", "swin_tiny_patch4_window7_224", 8, "training", "ms", "≤ 1.10×"),
)


def _ratio(rows: list[Row], above: str, below: str, batch: int, mode: str, threads: int, what: str = "ms") -> float:
    """The figure `what` of one contestant over another's, an image each."""

    def of(name: str) -> float:
        found = [r for r in rows if (r.contestant, r.mode, r.threads) == (name, mode, threads)]
        best = min((r for r in found if r.batch <= batch), key=lambda r: batch - r.batch, default=None)
        return float(getattr(best, what)) / best.batch if best else float("nan")

    return of(above) / of(below)
