"""Print what a run or an evaluation found: the scores of each class, the files, and what to do next."""

from __future__ import annotations

import math
import shlex
from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind
from acmix_zoo.training.evaluation_files import ClassTable, WrittenFile

_MOST_CLASSES = 20  # of more, only the worst are printed
_WORST_CLASSES = 10


def print_class_table(table: ClassTable) -> None:
    """Print the scores of each class, or of the worst if there are many."""
    order = list(range(len(table.class_names)))
    if len(order) > _MOST_CLASSES:
        known = [i for i in order if not math.isnan(table.main[i])]
        order = sorted(known, key=lambda i: table.main[i])[:_WORST_CLASSES]
        print(f"The {len(order)} classes with the lowest scores, of {len(table.class_names)}:")
    rows = [["class", *([table.unit] if table.counts else []), *table.scores]]
    for i in order:
        values = [values[i] for values in table.scores.values()]
        percentages = ["-" if math.isnan(value) else f"{100 * value:.2f} %" for value in values]
        rows.append([table.class_names[i], *(f"{count:,}" for count in table.counts[i : i + 1]), *percentages])
    print_columns(rows)


def print_files(folder: Path, files: Sequence[WrittenFile]) -> None:
    """Print the files of a run folder and what they show."""
    print(f"Files in {folder}:")
    print_columns([(f"  {file.path.relative_to(folder)}", file.content) for file in files])


def print_next_commands(task: TaskKind, folder: Path, data: ResumableDataModule, source: str) -> None:
    """Print what to do with a finished run.

    Args:
        folder: the run folder.
        data: its data, one image of which serves as an example.
        source: the data set as given.
    """
    image, run = data.loaders.example_file() or "IMAGE", shlex.quote(str(folder))
    if task is CLASSIFICATION:
        example = shlex.quote(image)
        commands = [
            f"classify {example} --model {run}",
            f"explain {example} --model {run}",
            f"export {run} {shlex.quote(f'{folder.name}.onnx')}",
        ]
    else:
        commands = [
            f"predict --config {run} --data.predict {shlex.quote(image)}",
            f"verify {run} --data {shlex.quote(source)}",
            f"push {run} ORG/NAME",
        ]
    print("Next:", *(f"  acmix-zoo {command}" for command in commands), sep="\n", flush=True)
