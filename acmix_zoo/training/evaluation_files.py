"""Write what an evaluation found: a table of the classes, the confusion matrix, and the most confident mistakes."""

from __future__ import annotations

import contextlib
import csv
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from PIL import Image
from torch import Tensor

from acmix_zoo.data.contact_sheet import write_contact_sheet
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.splits import Split
from acmix_zoo.data.wording import count_noun
from acmix_zoo.tasks import Task
from acmix_zoo.tasks.evaluation import Evaluation, Mistake
from acmix_zoo.training.plots import plot_confusion

_MOST_MISTAKES = 24


class WrittenFile(NamedTuple):
    """A file of a run folder, and what it shows, in words."""

    path: Path
    content: str


class ClassTable(NamedTuple):
    """Numbers for each class.

    Attributes:
        unit: what `counts` are numbers of: "images" or "pixels"; "" without counts.
        counts: for each class, how many there are of it; [] if that is not known.
        scores: {name: a value between 0 and 1 for each class, NaN if it is undefined}.
        class_names: the names of the classes.
    """

    unit: str
    counts: list[int]
    scores: dict[str, list[float]]
    class_names: Sequence[str]

    @property
    def main(self) -> list[float]:
        """The score by which classes are compared."""
        return self.scores["F1"] if "F1" in self.scores else next(iter(self.scores.values()))


def class_table(task: Task, split: str, class_names: Sequence[str]) -> ClassTable | None:
    """Return the scores of each class in the last evaluation of a split, or None if the task has none.

    Precision is the fraction of right predictions among all predictions of a class, recall the fraction of a class that
    was found, and F1 their harmonic mean.
    """
    evaluation, own = task.evaluations.get(split, Evaluation()), task.class_scores.get(split)
    scores, counts, unit = {}, [], ""
    if evaluation.confusion is not None:
        matrix = evaluation.confusion.double()
        correct, actual, predicted = matrix.diagonal(), matrix.sum(1), matrix.sum(0)
        scores = {
            "precision": (correct / predicted).tolist(),
            "recall": (correct / actual).tolist(),
            "F1": (2 * correct / (actual + predicted)).tolist(),
        }
        counts, unit = actual.long().tolist(), evaluation.unit
    scores |= {metric: list(values.values()) for metric, values in (own or {}).items()}
    return ClassTable(unit, counts, scores, class_names) if scores else None


def write_evaluation(task: Task, data: ResumableDataModule, split: str, folder: Path) -> list[WrittenFile]:
    """Write the files of the last evaluation of a split into `folder/split`, as far as the task has them. Those of an
    earlier evaluation are replaced.

    Returns:
        The files. A failure is printed, and the files before it are returned.
    """
    folder = folder / split
    evaluation, written = task.evaluations.get(split, Evaluation()), []
    with warn_of_failure(folder):
        folder.mkdir(parents=True, exist_ok=True)
        for name in ("classes.csv", "confusion.png", "mistakes.png"):
            (folder / name).unlink(missing_ok=True)
        if table := class_table(task, split, data.class_names):
            written.append(_write_table(table, folder / "classes.csv"))
        if evaluation.confusion is not None:
            written.append(_plot_confusion(evaluation.confusion, data.class_names, folder / "confusion.png"))
        if evaluation.mistakes and isinstance(data.loaders, IndexedLoaders):
            images = data.loaders.splits[split]
            written.append(_draw_mistakes(evaluation.mistakes, images, data.class_names, folder / "mistakes.png"))
        if not written:
            with contextlib.suppress(OSError):  # the user may keep files there
                folder.rmdir()
    return written


@contextlib.contextmanager
def warn_of_failure(path: Path) -> Iterator[None]:
    """Print a warning if files that explain a result cannot be written. A run must not lose its weights to a picture.

    Args:
        path: what is written.
    """
    try:
        yield
    except Exception as error:
        reason = error.strerror or error if isinstance(error, OSError) else f"{type(error).__name__}: {error}"
        print(f"Warning: could not write to {path}: {reason}", flush=True)


def _write_table(table: ClassTable, path: Path) -> WrittenFile:
    with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
        writer = csv.writer(file)
        writer.writerow(["class", *([table.unit] if table.counts else []), *table.scores])
        for i, name in enumerate(table.class_names):
            values = [values[i] for values in table.scores.values()]
            numbers = ["" if math.isnan(value) else f"{value:.4f}" for value in values]
            writer.writerow([name, *table.counts[i : i + 1], *numbers])
    names = list(table.scores)
    return WrittenFile(path, " and ".join(filter(None, [", ".join(names[:-1]), names[-1]])) + " of each class")


def _plot_confusion(matrix: Tensor, class_names: Sequence[str], path: Path) -> WrittenFile:
    plot_confusion(matrix.numpy(), class_names, path)
    return WrittenFile(path, "confusion matrix: which classes are taken for which")


def _draw_mistakes(mistakes: Sequence[Mistake], split: Split, class_names: Sequence[str], path: Path) -> WrittenFile:
    shown: list[Mistake] = []
    pictures: list[Image.Image] = []
    for mistake in mistakes[:_MOST_MISTAKES]:
        try:
            pictures.append(split.images.image(int(split.indices[mistake.position])))
        except UnreadableImage:  # the evaluation has warned of it
            continue
        shown.append(mistake)
    titles = [
        f"predicted {class_names[each.predicted]}\ntrue {class_names[each.truth]}\n{100 * each.probability:.0f} %, "
        f"{'/'.join(Path(split.images.describe(int(split.indices[each.position]))).parts[-2:])}"
        for each in shown
    ]
    if shown:
        write_contact_sheet(path, pictures, titles)
    return WrittenFile(path, f"{len(shown)} of {count_noun(len(mistakes), 'mistake')}, most confident first")
