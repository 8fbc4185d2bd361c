"""The run folder: options, the best epoch, the epoch line, more epochs, and runs without validation."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from support.training import (
    CallAt,
    assert_same_run,
    cut_power,
    fit_arguments,
    train_run,
)
from torch import Tensor

from acmix_zoo.cli.main import main
from acmix_zoo.tasks import ClassificationTask, Task
from acmix_zoo.training import RunFolder
from acmix_zoo.weights import check_folder


def test_save_every_out_of_range_is_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="save_every=0 is not positive"):
        RunFolder(str(tmp_path), save_every=0)


def test_accumulated_batches_draw_different_random_numbers(image_folder: Path, tmp_path: Path) -> None:
    class Draws(L.Callback):
        seen: list[float] = []  # noqa: RUF012

        def on_before_backward(self, trainer: L.Trainer, module: L.LightningModule, loss: Tensor) -> None:
            self.seen.append(float(torch.rand(())))

    train_run(tmp_path / "run", image_folder, draws := Draws(), trainer_accumulate_grad_batches=2, trainer_epochs=1)
    assert len(set(draws.seen)) == 6


def test_a_finished_run_can_be_trained_for_longer(image_folder: Path, tmp_path: Path) -> None:
    first = train_run(tmp_path / "run", image_folder, trainer_epochs=2)
    run = train_run(tmp_path / "run", image_folder, resume=first.last, trainer_epochs=4)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert run.history[1]["lr"] < run.history[2]["lr"] > run.history[3]["lr"]  # continues on the longer cosine schedule
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 5


def test_resuming_with_more_epochs_warns_that_the_schedule_changed(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(tmp_path / "run", image_folder, trainer_epochs=1)
    assert "schedule changed" not in capsys.readouterr().out
    train_run(tmp_path / "run", image_folder, trainer_epochs=3, resume=run.last)
    printed = capsys.readouterr().out
    assert "Resuming from epoch 2 of 3 (step 6 of 18)" in printed
    assert "Warning: schedule changed (planned for 1 epochs, now 3)" in printed


def test_an_epoch_that_was_not_validated_is_not_the_best(image_folder: Path, tmp_path: Path) -> None:
    run = train_run(tmp_path / "run", image_folder, trainer_check_val_every_n_epoch=2, trainer_epochs=5)
    assert [row["epoch"] for row in run.history if "val/top1" in row] == [2, 4]
    assert torch.load(run.best, weights_only=True)["epoch"] + 1 in (2, 4)
    with pytest.raises(RuntimeError, match="power"):
        train_run(
            tmp_path / "cut",
            image_folder,
            CallAt(cut_power, epoch=2, batch=3),
            trainer_check_val_every_n_epoch=2,
            trainer_epochs=5,
        )
    cut = tmp_path / "cut/checkpoints/last.ckpt"
    again = train_run(tmp_path / "cut", image_folder, trainer_check_val_every_n_epoch=2, trainer_epochs=5, resume=cut)
    assert_same_run(run, again)
    unvalidated = train_run(tmp_path / "unvalidated", image_folder, trainer_limit_val_batches=0)
    assert torch.load(unvalidated.best, weights_only=True)["epoch"] == 2  # the last epoch


class Tie(L.Callback):
    """Give all three epochs the same accuracy, and the second one the lowest loss."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        loss = (3.0, 1.0, 2.0)[trainer.current_epoch]
        trainer.callback_metrics.update({"val/top1": torch.tensor(0.5), "val/loss": torch.tensor(loss)})


def test_the_epoch_line_names_the_epoch_whose_weights_are_kept(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = train_run(tmp_path / "run", image_folder, Tie())
    lines = [line for line in capsys.readouterr().out.splitlines() if line.startswith("epoch ")]
    assert [line.partition("(best ")[2].partition(")")[0] for line in lines] == [
        "50.00 % in epoch 1", "50.00 % in epoch 2", "50.00 % in epoch 2",
    ]  # fmt: skip
    assert torch.load(run.best, weights_only=True)["epoch"] + 1 == 2


def test_a_run_without_validation_writes_its_weights(image_folder: Path, tmp_path: Path) -> None:
    assert main(fit_arguments(image_folder, tmp_path / "run", data__val_fraction=0)) == 0
    assert check_folder(tmp_path / "run/weights") == []


def test_a_picture_that_fails_does_not_cost_the_weights(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def fail(self: Task, data: object, path: object) -> None:
        raise RuntimeError("no font")

    monkeypatch.setattr(Task, "plot_examples", fail)
    folder = tmp_path / "run"
    assert main(fit_arguments(image_folder, folder)) == 0
    assert (folder / "weights/config.json").is_file()
    assert f"Warning: could not write to {folder / 'predictions.png'}: RuntimeError: no font" in capsys.readouterr().out


def test_a_fine_tuned_run_is_evaluated_with_its_own_weights(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    start = tmp_path / "start.pth"
    torch.save(ClassificationTask("test_resnet", num_classes=3).model.state_dict(), start)
    folder = tmp_path / "run"
    options = {"trainer__max_epochs": 3, "model__pretrained": start, "model__lr": 0.01}
    assert main(fit_arguments(image_folder, folder, **options)) == 0
    history = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["RunFolder"]["history"]
    best = max(row["val/top1"] for row in history)
    capsys.readouterr()
    assert main(["validate", "--config", str(folder / "config.yaml")]) == 0
    assert f"val: accuracy {100 * best:.2f} %" in capsys.readouterr().out
    assert best > 0.7, "too low to tell the trained weights from the initial ones"
