"""The standard measurements; `speed_table.py` makes README's table of them.

    python -m tools.suite benchmarks [layer aggregation decomposition networks compile growth]

writes a CSV a group and machine.json into benchmarks/, in about half an hour on two quiet cores.
"""

from __future__ import annotations

import datetime
import json
import platform
import sys
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import timm
import torch

from acmix_zoo.bench.candidates import Case
from acmix_zoo.bench.growth import growth_cases, growths
from acmix_zoo.bench.measure import Row, measure
from acmix_zoo.bench.table import print_table, write_csv
from acmix_zoo.ops.peak import matmul_peak

THREADS = (2, 1)
STRIDE_1 = ("64x56", "128x28", "256x14", "512x7")
SAN10 = ("16x112k3", "64x56", "128x28", "256x14", "512x7")
STRIDE_2 = ("128x56s2", "256x28s2", "512x14s2")


def layer_rows() -> Iterator[Row]:
    """Every shape of the ResNet form against the released form, the readable reference and a plain convolution."""
    for threads in THREADS:
        for shapes, batch in ((STRIDE_1, 8), (STRIDE_2, 8), (STRIDE_1, 1)):
            for shape in shapes:
                for train in (False, True):
                    names = [f"acmix2d:{shape}", f"released:{shape}", f"conv3x3:{shape}"]
                    first = shape == "64x56" and batch == 8
                    names += [f"acmix2d:{shape}@reference"] * first
                    yield from measure([Case(n, batch, 0, train, threads) for n in names], 5, memory=first)


def aggregation_rows() -> Iterator[Row]:
    """SAN's sums at the shapes of SAN10's stages, against their unfold form."""
    for threads in THREADS:
        for shape in SAN10:
            for train in (False, True):
                names = (f"aggregate:{shape}", f"unfold:{shape}")
                yield from measure([Case(n, 8, 0, train, threads) for n in names], 5, memory=threads == 2)


def decomposition_rows() -> Iterator[Row]:
    """A 3×3 convolution, and the same as projections, shift and sum with the three shifts of the paper's figure 3."""
    names = ("conv3x3", "shift-tensor", "shift-frozen", "shift-learnable")
    for shape in STRIDE_1:
        for train in (False, True):
            yield from measure([Case(f"{n}:{shape}", 8, 0, train, 2) for n in names], 5)


def network_rows() -> Iterator[Row]:
    """The two networks against their plain counterparts, and the ResNet against its released form."""
    resnets = ("acmix_resnet50", "acmix_resnet50@released", "resnet50")
    swins = ("acmix_swin_t", "swin_tiny_patch4_window7_224")
    for threads in THREADS:
        for names, batch, train in (
            (resnets, 8, False), (resnets, 8, True), (swins, 1, False), (swins, 8, False), (swins, 8, True),
        ):  # fmt: skip
            repeats = 3 if names is resnets else 7
            yield from measure([Case(n, batch, 0, train, threads) for n in names], repeats, memory=threads == 2)


def compile_rows() -> Iterator[Row]:
    """Compiled against eager."""
    for train in (False, True):
        for name in ("acmix_resnet50", "acmix_swin_t"):
            yield from measure([Case(n, 8, 0, train, 2) for n in (name, f"{name}+compile")], 5, memory=False)


def growth_rows() -> Iterator[Row]:
    """Time and memory over image sizes, batches and depths."""
    for name in ("acmix_resnet50", "acmix_swin_t"):
        for over in ("size", "batch", "depth"):
            rows = [
                row
                for case in growth_cases(Case(name, 1 if over == "depth" else 8), over)
                for row in measure([case], 3)
            ]
            print("\n".join(growths(rows, over)), flush=True)
            # The name says what grew, so that one file can hold all.
            yield from (replace(row, contestant=f"{name} over {over}") for row in rows)


GROUPS = {
    "layer": layer_rows,
    "aggregation": aggregation_rows,
    "decomposition": decomposition_rows,
    "networks": network_rows,
    "compile": compile_rows,
    "growth": growth_rows,
}


def machine() -> dict[str, object]:
    """What the figures were measured on and with."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    wide = any("avx512f" in line for line in lines if line.startswith("flags"))
    return {
        "cpu": f"{names[0] if names else platform.processor()} ({'AVX-512' if wide else 'no AVX-512'})",
        "cores": len(names),
        "matmul_gflops": {str(threads): round(matmul_peak(threads), 1) for threads in THREADS},
        "torch": torch.__version__.split("+")[0],
        "timm": timm.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def main(folder: Path, groups: list[str]) -> None:
    """Measure groups and write their files."""
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps(machine(), indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    for group in groups or GROUPS:
        rows = []
        for row in GROUPS[group]():
            rows.append(row)
            print_table([row])
        write_csv(rows, folder / f"{group}.csv")


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2:])
