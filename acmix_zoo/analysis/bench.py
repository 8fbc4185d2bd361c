"""`acmix-zoo bench`: measure, print a table, write a CSV and a picture."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from dataclasses import Field, asdict, fields
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

import torch

from acmix_zoo.analysis import benchmark
from acmix_zoo.analysis.benchmark import Row, measure
from acmix_zoo.analysis.contestants import Case
from acmix_zoo.analysis.growth import OVER, growth_cases, growths
from acmix_zoo.layers.complexity import human

T = TypeVar("T")


def bench(arguments: Sequence[str], parser_class: type[argparse.ArgumentParser] = argparse.ArgumentParser) -> list[Row]:
    """Run the command; `--help` tells the options.

    Args:
        parser_class: the command line's own, which explains errors.

    Raises:
        ValueError: no such network, form or dtype.
        benchmark.OutOfMemory: not even one image fits.
    """
    parser = parser_class(
        "acmix-zoo bench",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    add = parser.add_argument
    add("contestants", nargs="+", metavar="contestant", help="see above; ratios are against the first")
    add("--batch", type=int, nargs="+", default=[8], help="images a pass (default: 8); halved when memory runs out")
    add("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    add("--mode", choices=("inference", "training", "both"), default="inference", help="training is forward + backward")
    add("--size", type=int, default=0, help="side of a network's image (default: the network's own)")
    add("--dtype", default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=7, help="rounds (default: 7)")
    add("--over", choices=OVER, help="measure growth over image sizes 64 … 1024, batches 1 … 16 or depths ×1 … ×4")
    add("--no-memory", action="store_true", help="do not measure peak memory, which takes a process each")
    add("--csv", type=Path, help="write the figures there")
    add("--plot", type=Path, help="draw time against MACs there (.png, .svg, .pdf)")
    options = parser.parse_args(arguments)
    for name in ("batch", "threads"):
        if min(getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.repeats < 1 or options.size < 0:
        parser.error("--repeats must be at least 1, and --size not negative")

    rows: list[Row] = []
    modes = {"inference": [False], "training": [True], "both": [False, True]}[options.mode]
    for threads in options.threads:
        for train in modes:
            for batch in options.batch:
                kind = dict(batch=batch, size=options.size, train=train, threads=threads)
                cases = [Case(name, **kind, dtype=options.dtype, device=options.device) for name in options.contestants]
                groups = [growth_cases(case, options.over) for case in cases] if options.over else [cases]
                for group in groups:
                    # Growing cases are not contestants: the largest would make the batch of all of them small.
                    parts = [[case] for case in group] if options.over else [group]
                    found = [row for part in parts for row in measure(part, options.repeats, not options.no_memory)]
                    print_table(found)
                    if found[0].batch < batch and not options.over:
                        print(f"memory ran out at batch {batch}: measured with {found[0].batch}")
                    if options.over:
                        print("\n".join(growths(found, options.over)))
                    rows += found
    if options.csv:
        write_csv(rows, options.csv)
    if options.plot:
        from acmix_zoo.analysis.plots import plot_speed

        plot_speed(rows, options.plot)
    return rows


def print_table(rows: Sequence[Row]) -> None:
    """Print the rows of one group, each against the first; ± is half the distance of the quartiles."""
    from rich.box import SIMPLE_HEAD
    from rich.console import Console
    from rich.table import Table

    first = rows[0]
    batches = "/".join(map(str, sorted({row.batch for row in rows})))
    threads = f"{first.threads} thread{'s' * (first.threads > 1)}"
    title = f"{first.mode}, {first.input}, batch {batches}, {threads}, {first.dtype}"
    table = Table(title=title, title_justify="left", box=SIMPLE_HEAD, padding=(0, 1, 0, 0), pad_edge=False)
    for name in ("", "ms", "×", "images/s", "MiB", "MACs", "GFLOP/s", "of peak"):
        table.add_column(name, justify="right" if name else "left", overflow="fold")
    for row in rows:
        spread = 50 * (row.ms_q3 - row.ms_q1) / row.ms
        table.add_row(
            row.contestant if row.input == first.input else f"{row.contestant}, {row.input}",
            f"{row.ms:.4g} ±{spread:.0f}%",
            f"{row.ms / first.ms:.2f}",
            f"{row.images_per_s:.4g}",
            "" if isnan(row.peak_mib) else f"{row.peak_mib:.0f}",
            human(row.macs),
            f"{row.gflops:.3g}",
            f"{100 * row.share_of_peak:.0f} %",
        )
    Console().print(table)


def write_csv(rows: Sequence[Any], path: Path) -> None:
    """Write rows, which are dataclasses of one type, with their field names as the header."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, [field.name for field in fields(rows[0] if rows else Row)], lineterminator="\n")
        writer.writeheader()
        writer.writerows(asdict(row) for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Return the rows that `acmix-zoo bench` wrote."""
    return read_rows(path, Row)


def read_rows(path: Path, kind: type[T]) -> list[T]:
    """Return the rows that `write_csv` wrote, as dataclasses of type `kind`."""
    kinds = {"str": str, "int": int, "float": float}
    names: list[Field[Any]] = list(fields(kind))  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        return [
            kind(**{field.name: kinds[str(field.type)](line[field.name]) for field in names})
            for line in csv.DictReader(file)
        ]
