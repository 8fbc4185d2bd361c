"""Rows of a benchmark as a table in the terminal, and as a CSV file that can be read again."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import Field, asdict, fields
from math import isnan
from pathlib import Path
from typing import Any, TypeVar

from acmix_zoo.bench.measure import Row
from acmix_zoo.layers.complexity import human

T = TypeVar("T")


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
