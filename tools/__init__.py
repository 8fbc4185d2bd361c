"""Programs for maintainers: measurements, studies and the tables of the documentation.

Run them as `python -m tools.NAME` in a clone. `python -m tools.NAME --help` explains each.
"""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path
from typing import Any


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command-line parser for `python -m tools.<name>` that prints the module's docstring as its help."""
    return argparse.ArgumentParser(
        f"python -m tools.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )


def read_table(path: Path) -> list[dict[str, str]]:
    """Return the rows of a study's table, one for each finished run; none if it does not exist."""
    if not path.is_file():
        return []
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def append_rows(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Append rows to a table, which is created with a header if needed."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a", newline="", encoding="utf-8") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        if not file.tell():
            writer.writeheader()
        writer.writerows(rows)
