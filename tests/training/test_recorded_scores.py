"""A record only states scores of the weights that it belongs to, and what else is true of them."""

import json
import os
import signal
import time
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

import lightning as L
import torch
from support.tasks import TASKS, skip_without_packages
from support.training import (
    CallAt,
    CrashAfterFirstEpoch,
    callback_option,
    checkpoint_state,
    cut_power,
    fit_arguments,
    train_run,
)

from acmix_zoo.cli.main import main
from acmix_zoo.training import RunFolder
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.weights import from_pretrained, read_config


class CrashBeforeEnd(CallAt):
    """Crash in the third epoch. For `--trainer.callbacks`."""

    def __init__(self) -> None:
        super().__init__(cut_power, epoch=2, batch=0)


class LogWeightNorm(L.Callback):
    """Log a number that is not a score as if it was one. For `--trainer.callbacks`."""

    def on_validation_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        module.log("val/weight_norm", torch.tensor(229.8))


def named(callback: type[L.Callback]) -> str:
    """Return the value of `--trainer.callbacks` for a callback of this file."""
    return json.dumps({"class_path": f"{__name__}.{callback.__name__}"})


def scores(folder: Path) -> dict[str, float]:
    """Return the scores on the validation split in the record of a weight folder."""
    metrics = read_config(folder)["acmix_zoo"]["metrics"]
    return {metric["name"]: metric["value"] for metric in metrics if metric["split"] == "val"}


def test_numbers_of_callbacks_are_not_recorded(runs: Path, tmp_path: Path) -> None:
    assert main(fit_arguments(runs / "images", tmp_path / "run", trainer__callbacks=named(LogWeightNorm))) == 0
    assert scores(tmp_path / "run/weights").keys() == {"top1"}
    assert "val/weight_norm" in (tmp_path / "run/metrics.csv").read_text()


def test_a_checkpoint_within_an_epoch_has_no_scores(runs: Path, tmp_path: Path) -> None:
    """The last scores in its history are those of older weights."""
    with pytest.raises(RuntimeError):
        train_run(tmp_path / "run", runs / "images", CallAt(cut_power, epoch=1, batch=4), save_every=2)
    record = read_config(export_run(tmp_path / "run/checkpoints/last.ckpt", tmp_path / "last"))["acmix_zoo"]
    assert (
        record["metrics"] == [] and record["steps"] == torch.load(tmp_path / "run/checkpoints/last.ckpt")["global_step"]
    )
    assert scores(export_run(tmp_path / "run", tmp_path / "best")).keys() == {"top1"}, "the best epoch was evaluated"


def test_weights_without_a_validation_in_their_epoch_are_validated_at_the_end(
    runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "run"
    assert main(fit_arguments(runs / "images", folder, trainer__check_val_every_n_epoch=5)) == 0
    (value,) = scores(folder / "weights").values()
    assert f"images: val accuracy {100 * value:.2f} %" in capsys.readouterr().out
    assert main(["verify", str(folder), "--data", str(runs / "images")]) == 0


def test_an_epoch_has_to_end_with_a_validation(runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, Any] = {"data__batch_size": 4, "trainer__limit_train_batches": 6}
    folder = tmp_path / "run"
    assert main(fit_arguments(runs / "images", folder, **options, trainer__val_check_interval=4)) == 1
    assert "an epoch of 6 batches would end without a validation" in capsys.readouterr().err
    assert main(fit_arguments(runs / "images", folder, **options, trainer__val_check_interval=0.5)) == 0
    assert main(["verify", str(folder), "--data", str(runs / "images")]) == 0


def test_epochs_that_end_between_two_validations_have_no_score(runs: Path, tmp_path: Path) -> None:
    """With check_val_every_n_epoch=None, batches are counted over epochs."""
    interval = {"trainer_check_val_every_n_epoch": None, "trainer_limit_train_batches": 3}
    run = train_run(tmp_path / "run", runs / "images", trainer_val_check_interval=6, **interval)
    assert ["val/top1" in row for row in run.history] == [False, True, False]
    with pytest.raises(ValueError, match="an epoch of 3 batches would end without a validation"):
        train_run(tmp_path / "other", runs / "images", trainer_val_check_interval=5, **interval)


def test_an_export_states_how_its_scores_were_measured(tmp_path: Path) -> None:
    segmentation = TASKS[1]
    skip_without_packages(segmentation)
    segmentation.write_data(tmp_path / "data")
    window = {"model__window": "[16, 16]", "model__window_overlap": 0.0, "trainer__max_epochs": 2}
    crash = callback_option(CrashAfterFirstEpoch)
    assert main(segmentation.fit(tmp_path / "data", tmp_path / "run", **window, trainer__callbacks=crash)) == 1
    record = read_config(export_run(tmp_path / "run", tmp_path / "weights"))["acmix_zoo"]
    assert record["evaluation"] == {"window": [16, 16], "window_overlap": 0.0}
    assert main(["verify", str(tmp_path / "weights"), "--data", str(tmp_path / "data")]) == 0


@pytest.mark.slow
def test_the_weights_of_a_finished_run_that_is_trained_further(runs: Path, tmp_path: Path) -> None:
    """As long as it is not finished again, its weights are those of the best checkpoint."""
    run = RunFolder(str(tmp_path / "run"))
    images, options = runs / "images", {"model__lr": 0.01, "model__warmup_epochs": 0, "ckpt_path": "last"}
    assert main(fit_arguments(images, run.folder, **options)) == 0
    before = checkpoint_state(run.best)
    assert export_run(run.folder, tmp_path / "finished") and scores(tmp_path / "finished")
    crash = named(CrashBeforeEnd)
    assert main(fit_arguments(images, run.folder, **options, trainer__max_epochs=3, trainer__callbacks=crash)) == 1
    after = checkpoint_state(run.best)
    assert any(not torch.equal(before[key], after[key]) for key in after), "a later epoch is the best now"
    loaded = from_pretrained(run.folder).state_dict()
    exported = from_pretrained(export_run(run.folder, tmp_path / "weights")).state_dict()
    for state in (loaded, exported):
        assert all(torch.equal(value, after[f"model.{key}"]) for key, value in state.items())
    assert read_config(tmp_path / "weights")["acmix_zoo"]["epochs"] > 1


@pytest.mark.slow
def test_minutes_include_the_time_before_an_interruption(runs: Path, tmp_path: Path) -> None:
    def wait(*_: Any) -> None:
        time.sleep(0.2)

    images, slow = runs / "images", L.Callback()
    slow.on_train_batch_start = wait  # type: ignore[method-assign]
    stop = CallAt(lambda: os.kill(os.getpid(), signal.SIGTERM), epoch=0, batch=4)
    with pytest.raises(SystemExit):
        train_run(tmp_path / "run", images, stop, slow, trainer_epochs=1)
    run = train_run(tmp_path / "run", images, slow, resume=tmp_path / "run/checkpoints/last.ckpt", trainer_epochs=1)
    assert run.history[0]["seconds"] > 6 * 0.2, "of six batches, five were before the interruption"
    assert run.history[0]["images_per_second"] < 4 / 0.2


def test_a_run_is_not_validated_on_images_that_it_was_trained_on(
    runs: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    command = ["validate", f"--config={runs / 'finished'}"]
    assert main(command) == 0
    assert main([*command, "--data.val_fraction=0.5"]) == 1
    assert "may have been trained on some of them" in capsys.readouterr().err
