"""The rows that a benchmark produces, as a table for the terminal and as a CSV file."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from dataclasses import Field, asdict, dataclass, fields
from math import isnan
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from acmix_zoo.layers.complexity import human

if TYPE_CHECKING:
    from rich.table import Table

T = TypeVar("T")


@dataclass(frozen=True)
class Row:
    """The measurement of one candidate.

    Attributes:
        candidate: its name.
        mode: "inference" or "training".
        threads: number of CPU threads.
        dtype: name of the torch dtype.
        batch: images per pass.
        input: shape of the input without the batch, such as "3×224×224".
        ms, ms_q1, ms_q3: median and quartiles of the milliseconds per pass.
        images_per_s: throughput.
        peak_mib: peak memory of a pass, or NaN if it was not measured.
        macs: multiply-accumulates per image, by the definition of the layers.
        gflops: GFLOP/s, at two FLOPs per MAC.
        peak_fraction: gflops as a fraction of what this machine reaches in a matrix product.
    """

    candidate: str
    mode: str
    threads: int
    dtype: str
    batch: int
    input: str
    ms: float
    ms_q1: float
    ms_q3: float
    images_per_s: float
    peak_mib: float
    macs: int
    gflops: float
    peak_fraction: float


def format_table(rows: Sequence[Row]) -> Table:
    """Return a table for rich's console, with times relative to the first row; ± is half the interquartile range."""
    from rich.box import SIMPLE_HEAD
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
            row.candidate if row.input == first.input else f"{row.candidate}, {row.input}",
            f"{row.ms:.4g} ±{spread:.0f}%",
            f"{row.ms / first.ms:.2f}",
            f"{row.images_per_s:.4g}",
            "" if isnan(row.peak_mib) else f"{row.peak_mib:.0f}",
            human(row.macs),
            f"{row.gflops:.3g}",
            f"{100 * row.peak_fraction:.0f} %",
        )
    return table


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


def read_rows(path: Path, row_type: type[T]) -> list[T]:
    """Return the rows that `write_csv` wrote, as dataclasses of type `row_type`."""
    types = {"str": str, "int": int, "float": float}
    columns: list[Field[Any]] = list(fields(row_type))  # type: ignore[arg-type]
    with path.open(newline="", encoding="utf-8") as file:
        return [
            row_type(**{column.name: types[str(column.type)](line[column.name]) for column in columns})
            for line in csv.DictReader(file)
        ]
