"""What a run prints, and the options that are refused before it starts."""

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from support.training import fit_arguments, make_data, make_task, make_trainer

from acmix_zoo.cli.main import main
from acmix_zoo.cli.trainer import TrainingCLI
from acmix_zoo.training.logs import Bar
from acmix_zoo.weights import check_folder, create_model, read_config

ROOT = Path(__file__).parents[2]


# ---- before the first step


@pytest.mark.parametrize("recipe", ["folder", "full", "linear_probe", "swin_warm_start"])
def test_a_recipe_without_images_is_rejected(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails before anything is built, instead of training on images that the user did not choose."""
    assert main(["fit", "--config", str(ROOT / f"recipes/finetune/{recipe}.yaml")]) == 1
    error = capsys.readouterr().err
    assert "fit needs images, but --data.source is missing" in error and "Add --data.source" in error


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"trainer__limit_train_batches": 0}, "--trainer.limit_train_batches 0 leaves nothing to train on"),
        ({"trainer__max_steps": 0}, "--trainer.max_steps 0 trains nothing"),
        ({"trainer__accumulate_grad_batches": 0}, "--trainer.accumulate_grad_batches 0 is not positive"),
        ({"trainer__check_val_every_n_epoch": 0}, "--trainer.check_val_every_n_epoch 0 is not positive"),
        ({"trainer__val_check_interval": 0}, "--trainer.val_check_interval 0 is not positive"),
        ({"trainer__val_check_interval": 100}, "error: Lightning stopped: `val_check_interval` (100) must be less"),
        ({"data__seed": -1}, "seed=-1 is negative"),
        ({"trainer__enable_checkpointing": "false"}, "leaves no checkpoint from which to finish or resume the run"),
        ({"trainer__accelerator": "gpu"}, "does not find one. Use --trainer.accelerator cpu"),
        ({"trainer__accelerator": "tpu"}, "Lightning rejected the --trainer options"),
        ({"trainer__max_epochs": 0}, "max_epochs=0, but the schedule depends on the length of the run"),
        ({"trainer__max_epochs": -1}, "max_epochs=-1, but the schedule"),
        ({"trainer__strategy": "nonsense"}, "an invalid strategy name: `strategy='nonsense'`"),
        ({"model__model": "test_vit"}, "test_vit cannot process images of 32 × 32 pixels"),
        ({"model__model": "test_vit"}, "--data.image_size 160, or build it for this size with --model.model_kwargs"),
        ({"model__model_kwargs": "{nonsense: 1}"}, "test_resnet cannot be built with model_kwargs={'nonsense': 1}"),
        ({"model__lr": 0}, "lr=0.0 is out of range. Expected a number above 0"),
        ({"model__momentum": 1}, "momentum=1.0 is out of range. Expected"),
        ({"model__ema_decay": 2}, "ema_decay=2.0 is out of range. Expected"),
        ({"model__layer_decay": 0}, "Expected a factor per layer in (0, 1]"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_impossible_options_are_rejected(
    options: dict[str, Any], message: str, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options.get("trainer__accelerator") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(fit_arguments(photos, tmp_path / "run", **options)) == 1
    printed, error = capsys.readouterr()
    assert message in error and "Traceback" not in error
    assert "New run" not in printed and not (tmp_path / "run").exists()


def test_the_image_size_check_keeps_the_training_mode_of_every_module(photos: Path) -> None:
    task = make_task(linear_probe=True)
    task.train()
    before = [module.training for module in task.modules()]
    make_trainer(enable_checkpointing=False).validate(task, make_data(photos / "train"), verbose=False)
    task.train()
    assert [module.training for module in task.modules()] == before


@pytest.mark.slow
def test_a_run_describes_its_start_without_noise(photos: Path, tmp_path: Path) -> None:
    """The run has its own process, where every message of Lightning would appear."""
    words = fit_arguments(photos, tmp_path / "run", model__ema_decay=0.9, ckpt_path="last")
    command = [sys.executable, "-m", "acmix_zoo.cli", *words]
    result = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"New run in {tmp_path / 'run'}" in result.stdout
    assert "Model: test_resnet (0.373 M parameters), trained from scratch\n" in result.stdout
    assert re.search(r"Training: 1 epoch of 3 steps on cpu \(\d+ threads?\); images are resized to 32", result.stdout)
    assert result.stderr == ""  # Lightning's own messages, such as "Seed set to 0" and "GPU available"
    for noise in ("FLOP", "images/s", "Warning"):
        assert noise not in result.stdout, noise
    assert "top-5" not in result.stdout  # there are only three classes


def test_the_weights_that_a_run_starts_from_are_named(
    photo_run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    weights = photo_run / "weights"
    assert main(fit_arguments(photo_run.parents[1] / "photos", tmp_path / "run", model__pretrained=weights)) == 0
    assert f"fine-tuned from {read_config(weights)['acmix_zoo']['name']}\n" in capsys.readouterr().out


def test_a_batch_larger_than_the_data_scales_the_learning_rate_by_the_images_there_are(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(lr=0.1, base_batch_size=27)
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, make_data(photos / "train", batch_size=512))
    assert "27 images per step; learning rate 0.1 = 0.1 × 27 / 27" in capsys.readouterr().out
    assert task.trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.1)


def test_accumulating_more_batches_than_there_are_ends_with_the_epoch(
    photos: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The last batch of an epoch always ends with an optimiser step, even if fewer batches were accumulated."""
    trainer = make_trainer(epochs=1, enable_checkpointing=False, accumulate_grad_batches=100)
    trainer.fit(make_task(lr=0.1, base_batch_size=24), make_data(photos / "train", batch_size=8))
    printed = capsys.readouterr().out
    assert "1 × 8 × 3 accumulated = 24 images per step" in printed
    assert "an epoch has only 3 batches per process, but accumulate_grad_batches is 100" in printed
    assert "its gradient is scaled by 3/100. Use --trainer.accumulate_grad_batches 3 or lower" in printed
    assert trainer.global_step == 1


def test_a_trial_run_does_not_advise_on_accumulation(photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With fast_dev_run, an epoch has one batch whatever the data."""
    trainer = make_trainer(epochs=1, enable_checkpointing=False, accumulate_grad_batches=2, fast_dev_run=True)
    trainer.fit(make_task(lr=0.1), make_data(photos / "train", batch_size=8))
    assert "Warning" not in capsys.readouterr().out


# ---- the end of a run


def test_records_are_rounded(photo_run: Path) -> None:
    record = read_config(photo_run / "weights")["acmix_zoo"]
    assert all(m["value"] == round(m["value"], 6) for m in record["metrics"])
    assert 0 < record["minutes"] < 5
    assert {m["name"] for m in record["metrics"]} == {"top1"}


def test_a_run_without_validation_is_reported(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(fit_arguments(photos / "train", tmp_path / "run", data__val_fraction=0)) == 0
    assert "train: not evaluated, because there was no validation or test split" in capsys.readouterr().out
    assert main(["validate", f"--config={tmp_path / 'run/config.yaml'}"]) == 1
    assert "train has no validation images to evaluate" in capsys.readouterr().err


def test_only_the_splits_of_the_data_are_named(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(photos / "train", tmp_path / "run", trainer__overfit_batches=2)) == 0
    assert "so the scores of val are not recorded" in capsys.readouterr().out


def test_scores_on_part_of_a_split_are_not_recorded(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"trainer__limit_val_batches": 1, "trainer__limit_test_batches": 1}
    assert main(fit_arguments(photos, tmp_path / "run", **options)) == 0
    printed = capsys.readouterr().out
    assert "so the scores of val and test are not recorded" in printed
    assert "photos: no complete score, because options of the trainer left out images" in printed
    assert read_config(tmp_path / "run/weights")["acmix_zoo"]["metrics"] == []
    assert main(["test", "--config", str(tmp_path / "run")]) == 0  # with the recorded limit
    assert "this is the score of part of the images (trainer.limit_test_batches is 1)" in capsys.readouterr().out
    assert main(["test", "--config", str(tmp_path / "run"), "--trainer.limit_test_batches", "1.0"]) == 0
    assert "part of the images" not in capsys.readouterr().out


@pytest.mark.slow
def test_a_run_without_an_epoch_has_no_weights(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(photos, tmp_path / "run", trainer__max_time="00:00:00:00")) == 1
    error = capsys.readouterr().err
    assert "no epoch was trained, so there are no weights to test and export" in error and "unexpected" not in error


@pytest.mark.slow
def test_a_run_may_leave_out_the_test(photos: Path, tmp_path: Path) -> None:
    assert main(fit_arguments(photos, tmp_path / "run", trainer__limit_test_batches=0)) == 0
    metrics = read_config(tmp_path / "run/weights")["acmix_zoo"]["metrics"]
    assert {metric["split"] for metric in metrics} == {"val"}


def test_a_diverged_run_advises_a_lower_learning_rate(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(fit_arguments(photos, tmp_path / "run", model__lr=1e12, model__warmup_epochs=0, trainer__max_epochs=2))
    error = capsys.readouterr().err
    assert code == 1 and "lower model.lr" in error and "replayed" not in error


def test_a_run_in_half_precision_saves_float32_weights(photos: Path, tmp_path: Path) -> None:
    """The weight folder has the moving average, which is kept in float32."""
    options = {"trainer__precision": "bf16-true", "model__ema_decay": 0.9, "model__lr": 0.01}
    assert main(fit_arguments(photos, tmp_path / "run", **options)) == 0
    assert check_folder(tmp_path / "run/weights") == []
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    written = create_model(tmp_path / "run/weights").state_dict()
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in written.items())


def test_progress_bars_count_epochs_from_one(tmp_path: Path) -> None:
    bar = Bar()
    bar._trainer = L.Trainer(max_epochs=12, logger=False, enable_checkpointing=False, accelerator="cpu")
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 11)] == ["Epoch 1/12", "Epoch 12/12"]


@pytest.mark.parametrize(
    ("options", "bars"),
    [
        ({}, ["Bar"]),
        ({"trainer__enable_progress_bar": "false"}, []),
        ({"trainer__callbacks": "TQDMProgressBar"}, ["TQDMProgressBar"]),
        ({"trainer__callbacks": "[LearningRateMonitor, TQDMProgressBar]"}, ["TQDMProgressBar"]),
        ({"trainer__callbacks": "DeviceStatsMonitor"}, ["Bar"]),
    ],
    ids=str,
)
def test_a_terminal_shows_at_most_one_progress_bar(
    options: dict[str, str], bars: list[str], photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def record_bars(cli: TrainingCLI, _: str) -> None:
        seen.extend(type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, ProgressBar))

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", record_bars)
    assert main(fit_arguments(photos, tmp_path / "run", **options)) == 0
    assert seen == bars
