"""Measure everything that the speed tables of the documentation show, on a CPU (`make bench`).

    python -m tools.suite benchmarks                    # all groups, on two quiet cores
    python -m tools.suite benchmarks layer growth       # some of them
    ATEN_CPU_CAPABILITY=avx2 ONEDNN_MAX_CPU_ISA=AVX2 MKL_ENABLE_INSTRUCTIONS=AVX2 \\
        python -m tools.suite benchmarks/avx2 layer networks

This writes one CSV file per group, and machine.json. `make readme` then updates the tables. With the variables of the
last command, PyTorch's own kernels and ours use no AVX-512.
"""

from __future__ import annotations

import datetime
import json
import platform
from collections.abc import Iterator, Sequence
from dataclasses import replace
from itertools import product
from pathlib import Path

import timm
import torch
from rich.console import Console

from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.growth import AXES, describe_growth, grow
from acmix_zoo.bench.measure import measure
from acmix_zoo.bench.results import Row, format_table, write_csv
from acmix_zoo.ops.backends.native.library import instruction_set
from acmix_zoo.ops.peak import matmul_peak
from tools import make_parser

THREADS = (2, 1)
STRIDE_1 = ("64x56", "128x28", "256x14", "512x7")
STRIDE_2 = ("128x56s2", "256x28s2", "512x14s2")
INSTRUCTIONS = {"avx512": "AVX-512", "avx2": "AVX2", "portable": "no AVX2"}
SAN10 = ("16x112k3", "64x56", "128x28", "256x14", "512x7")


def layer_rows() -> Iterator[Row]:
    """Measure every shape of the ResNet layer against a 3×3 convolution, the authors' code and the other backends."""
    for threads in THREADS:
        for shapes, batch in product((STRIDE_1, STRIDE_2), (8, 1)):
            for shape in shapes:
                for train in (False, True):
                    kinds = ("acmix2d:{}", "conv3x3:{}", "released:{}", "acmix2d:{}@python")
                    names = [kind.format(shape) for kind in kinds]
                    first = shape == "64x56" and batch == 8
                    names += [f"acmix2d:{shape}@reference"] * first
                    yield from measure([Candidate(n, batch, 0, train, threads) for n in names], 5, with_memory=first)


def aggregation_rows() -> Iterator[Row]:
    """Measure SAN's aggregation at the shapes of SAN10's stages, against a version with unfold."""
    for threads in THREADS:
        for shape in SAN10:
            for train in (False, True):
                names = (f"aggregate:{shape}", f"unfold:{shape}")
                yield from measure([Candidate(n, 8, 0, train, threads) for n in names], 5, with_memory=threads == 2)


def decomposition_rows() -> Iterator[Row]:
    """Measure a 3×3 convolution against projections, shift and sum, with the three shifts of the paper's figure 3."""
    names = ("conv3x3", "shift-tensor", "shift-frozen", "shift-learnable")
    for shape in STRIDE_1:
        for train in (False, True):
            yield from measure([Candidate(f"{n}:{shape}", 8, 0, train, 2) for n in names], 5)


def network_rows() -> Iterator[Row]:
    """Measure two networks against their plain counterparts, and the ResNet also against the authors' code."""
    resnets = ("acmix_resnet50", "resnet50", "acmix_resnet50@python")
    deployed = ("acmix_resnet50+deploy", "resnet50+deploy")
    swins = ("acmix_swin_t", "swin_tiny_patch4_window7_224", "acmix_swin_t@python")
    for threads, batch in product(THREADS, (8, 1)):
        for names, train in ((resnets, False), (resnets, True), (deployed, False), (swins, False), (swins, True)):
            is_first = batch == 8 and names is resnets
            names = (*names, "acmix_resnet50@released") if is_first else names
            candidates = [Candidate(n, batch, 0, train, threads) for n in names]
            yield from measure(candidates, 5 if is_first else 9, with_memory=threads == 2 and batch == 8)


def small_rows() -> Iterator[Row]:
    """Measure the training of the smallest ResNet on small images."""
    names = ("acmix_resnet_pico", "resnet_pico", "acmix_resnet_pico@python")
    for threads, size in product(THREADS, (32, 48, 64)):
        yield from measure([Candidate(n, 64, size, True, threads) for n in names], 5, with_memory=False)


def compile_rows() -> Iterator[Row]:
    """Measure compiled networks against eager ones."""
    for train in (False, True):
        for name in ("acmix_resnet50", "acmix_swin_t"):
            yield from measure([Candidate(n, 8, 0, train, 2) for n in (name, f"{name}+compile")], 5, with_memory=False)


def growth_rows() -> Iterator[Row]:
    """Measure time and memory over image sizes, batches and depths."""
    for name in ("acmix_resnet50", "acmix_swin_t"):
        for axis in AXES:
            candidates = grow(Candidate(name, 1 if axis == "depth" else 8), axis)
            rows = [row for candidate in candidates for row in measure([candidate], 3)]
            print("\n".join(describe_growth(rows, axis)), flush=True)
            # Add the axis to the name, so that one file can hold all axes.
            yield from (replace(row, candidate=f"{name} over {axis}") for row in rows)


GROUPS = {
    "layer": layer_rows,
    "aggregation": aggregation_rows,
    "decomposition": decomposition_rows,
    "networks": network_rows,
    "small": small_rows,
    "compile": compile_rows,
    "growth": growth_rows,
}


def describe_machine() -> dict[str, object]:
    """Return the hardware and software of the measurements."""
    lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return {
        "cpu": names[0] if names else platform.processor(),
        "instructions": INSTRUCTIONS[instruction_set()],
        "cores": len(names),
        "matmul_gflops": {str(threads): round(matmul_peak(threads), 1) for threads in THREADS},
        "torch": torch.__version__.split("+")[0],
        "timm": timm.__version__,
        "python": platform.python_version(),
        "date": datetime.date.today().isoformat(),
    }


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure the groups, print their rows and write their files."""
    parser = make_parser("suite", __doc__)
    parser.add_argument("folder", type=Path, help="where to write the files")
    parser.add_argument("groups", nargs="*", metavar="group", help=f"{', '.join(GROUPS)} (default: all)")
    options = parser.parse_args(arguments)
    if unknown := set(options.groups) - set(GROUPS):
        parser.error(f"unknown group {', '.join(sorted(unknown))}. Expected one of {', '.join(GROUPS)}")
    options.folder.mkdir(parents=True, exist_ok=True)
    machine = json.dumps(describe_machine(), indent=1, ensure_ascii=False)
    (options.folder / "machine.json").write_text(machine + "\n", encoding="utf-8")
    for group in options.groups or GROUPS:
        rows = []
        for row in GROUPS[group]():
            rows.append(row)
            Console().print(format_table([row]))
        write_csv(rows, options.folder / f"{group}.csv")


if __name__ == "__main__":
    main()
