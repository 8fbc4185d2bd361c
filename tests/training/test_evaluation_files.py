"""What a run and `acmix-zoo test` write about the classes: a table, the confusion matrix and the mistakes."""

from __future__ import annotations

import csv
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from PIL import Image

from acmix_zoo.cli.run_result import print_class_table
from acmix_zoo.models.task_kinds import CLASSIFICATION, DETECTION
from acmix_zoo.tasks.evaluation import Evaluation
from acmix_zoo.training.evaluation_files import class_table, write_evaluation

NAMES = ("cat", "dog", "newt")


def evaluated(**changes: Any) -> Any:
    """Return a task with an evaluation in which three classes were confused; no image is a newt."""
    confusion = torch.tensor([[6, 2, 0], [1, 3, 0], [0, 0, 0]])
    return SimpleNamespace(**{
        "kind": CLASSIFICATION, "evaluations": {"test": Evaluation(confusion)}, "class_scores": {}, **changes,
    })  # fmt: skip


def test_precision_recall_and_f1_by_hand() -> None:
    table = class_table(evaluated(), "test", NAMES)
    assert table is not None and table.counts == [8, 4, 0] and table.unit == "images"
    assert table.scores["precision"] == pytest.approx([6 / 7, 3 / 5, float("nan")], nan_ok=True)
    assert table.scores["recall"] == pytest.approx([6 / 8, 3 / 4, float("nan")], nan_ok=True)
    assert table.scores["F1"] == pytest.approx([12 / 15, 6 / 9, float("nan")], nan_ok=True)


def test_a_task_with_a_score_for_each_class_only() -> None:
    scores = {"test": {"AP": dict(zip(NAMES, (0.5, 0.25, float("nan")), strict=True))}}
    table = class_table(evaluated(kind=DETECTION, evaluations={}, class_scores=scores), "test", NAMES)
    assert table is not None and table.counts == [] and list(table.scores) == ["AP"]
    assert class_table(evaluated(evaluations={}), "test", NAMES) is None


def test_a_failure_is_a_warning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A run calls this before it exports its weights."""
    task = evaluated(kind=DETECTION, evaluations={}, class_scores={"test": {"AP": {"cat": 0.5}}})  # fewer than names
    data: Any = SimpleNamespace(class_names=NAMES, loaders=None)
    assert write_evaluation(task, data, "test", tmp_path) == []
    out = capsys.readouterr().out
    assert out == f"Warning: could not write to {tmp_path / 'test'}: IndexError: list index out of range\n"


def test_files_of_an_earlier_evaluation_are_replaced(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test/mistakes.png").write_text("of an earlier evaluation")
    data: Any = SimpleNamespace(class_names=NAMES, loaders=None)
    files = write_evaluation(evaluated(), data, "test", tmp_path)
    assert (
        {file.path.name for file in files}
        == {"classes.csv", "confusion.png"}
        == {path.name for path in (tmp_path / "test").iterdir()}
    )
    rows = list(csv.DictReader((tmp_path / "test/classes.csv").open()))
    assert rows[0] == {"class": "cat", "images": "8", "precision": "0.8571", "recall": "0.7500", "F1": "0.8000"}
    assert rows[2] == {"class": "newt", "images": "0", "precision": "", "recall": "", "F1": ""}


def test_a_folder_that_cannot_be_written_is_reported(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test").write_text("a file")
    data: Any = SimpleNamespace(class_names=NAMES, loaders=None)
    assert write_evaluation(evaluated(), data, "test", tmp_path) == []
    assert f"Warning: could not write to {tmp_path / 'test'}: File exists" in capsys.readouterr().out


def test_files_of_the_user_in_the_folder_are_no_failure(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "test").mkdir()
    (tmp_path / "test/notes.txt").touch()
    task = evaluated(evaluations={}, class_scores={})
    data: Any = SimpleNamespace(class_names=NAMES, loaders=None)
    assert write_evaluation(task, data, "test", tmp_path) == []
    assert not capsys.readouterr().out and (tmp_path / "test/notes.txt").exists()


def test_of_many_classes_the_worst_are_printed(capsys: pytest.CaptureFixture[str]) -> None:
    names = [f"class{i}" for i in range(30)]
    scores = {"test": {"AP": {name: i / 30 for i, name in enumerate(names)}}}
    table = class_table(evaluated(kind=DETECTION, evaluations={}, class_scores=scores), "test", names)
    assert table is not None
    print_class_table(table)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "The 10 classes with the lowest scores, of 30:" and len(lines) == 12
    assert lines[2].split() == ["class0", "0.00", "%"] and lines[-1].split()[0] == "class9"


def test_a_run_shows_its_training_images(photo_run: Path) -> None:
    with Image.open(photo_run / "augmented.png") as sheet:
        assert sheet.size == (6 * 168 + 8, 2 * 184 + 8)  # eight images in rows of six, each with a line of text
