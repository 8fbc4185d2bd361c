"""Lightning's EarlyStopping in runs: what it needs, and how a run that it stopped is repeated or continued."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from lightning.pytorch.callbacks import EarlyStopping
from support.training import callback_option, fit_arguments, make_data, make_task, make_trainer, resume_command

from acmix_zoo.cli.main import main
from acmix_zoo.training import RunFolder

NEVER_BETTER = {"min_delta": 2.0}


def fit(folder: Path, images: Path, trainer: dict[str, Any] | None = None, **options: Any) -> list[int]:
    """Train or resume a run with EarlyStopping for at most five epochs, and return the epochs of its history."""
    run = RunFolder(str(folder))
    stopping = EarlyStopping("val/top1", mode="max", **options)
    last = str(run.last) if run.last.exists() else None
    make_trainer(run, stopping, epochs=5, **trainer or {}).fit(make_task(), make_data(images), ckpt_path=last)
    return [int(row["epoch"]) for row in run.history]


def test_a_run_without_patience_is_not_trained_further(runs: Path, tmp_path: Path) -> None:
    """If it was interrupted before its weights were tested, for example."""
    epochs = [fit(tmp_path / "run", runs / "images", **NEVER_BETTER, patience=patience) for patience in (1, 1, 2)]
    assert epochs == [[1, 2], [1, 2], [1, 2, 3]]


@pytest.mark.parametrize(
    ("option", "line"),
    [
        ({"stopping_threshold": -1.0}, "val/top1 has reached the stopping_threshold -1.0"),
        ({"divergence_threshold": 2.0}, "val/top1 has reached the divergence_threshold 2.0"),
    ],
    ids=["stopping_threshold", "divergence_threshold"],
)
def test_a_run_that_reached_a_threshold_is_not_trained_further(
    runs: Path, tmp_path: Path, option: dict[str, float], line: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for _ in range(2):
        assert fit(tmp_path / "run", runs / "images", **option) == [1]
        assert f"Stopped early after epoch 1 of 5: {line}" in capsys.readouterr().out
    assert len(fit(tmp_path / "run", runs / "images", **NEVER_BETTER, patience=1)) > 1  # without the threshold


@pytest.mark.slow
@pytest.mark.parametrize(
    ("trainer", "first"),
    [({"min_epochs": 3}, [1, 2, 3]), ({"val_check_interval": 0.5, "limit_train_batches": 2}, [1])],
    ids=["min_epochs", "within an epoch"],
)
def test_a_threshold_that_was_reached_before_the_end_of_an_epoch_or_of_min_epochs(
    trainer: dict[str, Any], first: list[int], runs: Path, tmp_path: Path
) -> None:
    """An epoch that the callback ended early is finished when the run is repeated."""
    for _ in range(3):
        epochs = fit(tmp_path / "run", runs / "images", trainer, stopping_threshold=-1.0)
        assert epochs == first


@pytest.mark.slow
def test_a_run_that_stopped_early_continues_with_more_patience_or_without_the_callback(
    runs_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def fit(*early_stopping: str, others: Sequence[str] = ()) -> str:
        place = "lightning.pytorch.callbacks"
        stopping = [{"class_path": f"{place}.EarlyStopping", "init_args": json.loads(a)} for a in early_stopping]
        listed = json.dumps([*stopping, *({"class_path": f"{place}.{name}"} for name in others)])
        changes = {"trainer__max_epochs": 5, "trainer__callbacks": listed, "trainer__limit_train_batches": 1}
        assert main(resume_command(runs_copy, "early", **changes)) == 0
        return capsys.readouterr().out

    never_better = '{"monitor": "val/top1", "mode": "max", "min_delta": 2.0, "patience": %d}'
    assert "Stopped early after epoch 2 of 5" in fit(never_better % 1)
    assert "2 of 5 epochs" in fit(never_better % 1)  # finished, so nothing happens
    assert "2 of 5 epochs" in fit(never_better % 1, others=["ModelSummary"])
    assert "Stopped early after epoch 3 of 5" in fit(never_better % 2)
    assert "epoch 5/5" in fit()


def test_early_stopping_needs_validation_images(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    stopping = callback_option(EarlyStopping, monitor="val/top1", mode="max")
    stopping = stopping.replace(callback_option.__module__, EarlyStopping.__module__)
    options = {"data__val_fraction": 0, "trainer__callbacks": stopping}
    assert main(fit_arguments(photos / "train", tmp_path / "run", **options)) == 1
    error = capsys.readouterr().err
    assert "needs val/top1, but there are no validation images" in error and "unexpected" not in error
