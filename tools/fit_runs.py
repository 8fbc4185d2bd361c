"""Train the missing runs of a study with `acmix-zoo fit`, and add a row to its table for each."""

from __future__ import annotations

import sys
from collections.abc import Callable, Collection, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

from acmix_zoo.cli.main import main
from acmix_zoo.weights import read_config
from tools import append_rows


class Named(Protocol):
    """A run of a study."""

    @property
    def name(self) -> str:
        """The name of its run folder."""


RunT = TypeVar("RunT", bound=Named)


def train_missing(
    runs: Sequence[RunT],
    done: Collection[RunT],
    folder: Path,
    table: Path,
    *,
    arguments: Callable[[RunT, Path], list[str]],
    row: Callable[[RunT, dict[str, Any]], dict[str, Any]],
    is_list: bool = False,
) -> None:
    """Train the runs that are not done, or resume them.

    Args:
        runs: all runs of the study.
        done: those that the table has.
        folder: receives the run folders.
        table: the CSV file to which finished runs are added.
        arguments: returns the arguments of `acmix-zoo` that train a run into a run folder.
        row: returns the row of a finished run, given the record of its weights.
        is_list: print the runs and their state, and train nothing.
    """
    for run in runs:
        target = folder / run.name
        if is_list:
            state = "finished" if run in done else "started" if target.is_dir() else "not started"
            print(f"{run.name:<36} {state}")
        elif run not in done:
            # in this process, because a child would keep training after a signal has stopped this one
            if status := main(arguments(run, target)):
                sys.exit(status)
            append_rows(table, [row(run, read_config(target / "weights")["acmix_zoo"])])


def metric_on_test(record: dict[str, Any], name: str) -> float:
    """Return a metric on the test split from the record of weights."""
    (value,) = [m["value"] for m in record["metrics"] if (m["split"], m["name"]) == ("test", name)]
    return float(value)
