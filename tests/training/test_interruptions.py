"""Runs that are interrupted by a signal, a crash or a full disk, and give the same weights once they are resumed."""

import os
import shutil
import signal
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from support.tasks import CLASSIFICATION, TASKS, TaskCase, skip_without_packages
from support.training import (
    CallAt,
    CrashAfterFirstEpoch,
    assert_same_run,
    callback_option,
    checkpoint_weights,
    cut_power,
    fit_arguments,
    make_image_folder,
    make_trainer,
    no_large_files,
    train_run,
)

from acmix_zoo.cli.main import main
from acmix_zoo.training import RunFolder
from acmix_zoo.training.signals import Interrupted
from acmix_zoo.weights import check_folder


def fit(
    folder: Path,
    source: Path,
    *callbacks: L.Callback,
    resume: bool = False,
    epochs: int = 3,
    task: TaskCase = CLASSIFICATION,
) -> RunFolder:
    run = RunFolder(str(folder))
    torch.manual_seed(0)
    trainer = make_trainer(*callbacks, run, epochs=epochs)
    path = run.last if resume else None
    trainer.fit(task.make_task(ema_decay=0.9), task.make_data(source), ckpt_path=path, weights_only=True)
    return run


@pytest.fixture(scope="module")
def uninterrupted_runs(tmp_path_factory: pytest.TempPathFactory) -> Callable[[TaskCase], RunFolder]:
    """Return a function that returns a run of a task that is not interrupted, with its data next to it."""

    @cache
    def run(task: TaskCase) -> RunFolder:
        skip_without_packages(task)
        folder = tmp_path_factory.mktemp("uninterrupted")
        return fit(folder / "run", task.write_short_data(folder / "data"), task=task)

    return run


@pytest.fixture(scope="module")
def uninterrupted(uninterrupted_runs: Callable[[TaskCase], RunFolder]) -> RunFolder:
    """Return a run of a classifier that is not interrupted."""
    return uninterrupted_runs(CLASSIFICATION)


@pytest.mark.parametrize(
    ("moment", "number"),
    [
        pytest.param({"batch": 1}, signal.SIGINT, id="inside-SIGINT"),
        pytest.param({"batch": 2}, signal.SIGINT, id="last-SIGINT", marks=pytest.mark.slow),
        pytest.param({"batch": None}, signal.SIGINT, id="validation-SIGINT", marks=pytest.mark.slow),
        pytest.param({"batch": 1}, signal.SIGTERM, id="inside-SIGTERM", marks=pytest.mark.slow),
        pytest.param({"batch": 2}, signal.SIGTERM, id="last-SIGTERM"),
        pytest.param({"batch": None}, signal.SIGTERM, id="validation-SIGTERM"),
    ],
)
def test_signal_and_resume_give_the_uninterrupted_weights(
    number: signal.Signals,
    moment: dict[str, Any],
    image_folder: Path,
    uninterrupted: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        fit(tmp_path / "cut", image_folder, CallAt(lambda: os.kill(os.getpid(), number), epoch=1, **moment))
    assert stop.value.code == 128 + number
    assert f"{Path('cut/checkpoints/last.ckpt')}; pass it to Trainer.fit as ckpt_path" in capsys.readouterr().out
    assert signal.getsignal(number) == handler
    step = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == (5 if moment["batch"] == 1 else 6)  # three steps per epoch; no finished step is lost
    assert_same_run(uninterrupted, fit(tmp_path / "cut", image_folder, resume=True))


@pytest.mark.parametrize(
    "moment", [1, pytest.param(2, marks=pytest.mark.slow), pytest.param(None, marks=pytest.mark.slow)]
)
@pytest.mark.parametrize("task", TASKS[1:], ids=lambda task: task.name)
def test_every_task_resumes_to_the_bit(
    task: TaskCase, moment: int | None, uninterrupted_runs: Callable[[TaskCase], RunFolder], tmp_path: Path
) -> None:
    """After a crash within an epoch, at its end, and during a validation."""
    expected = uninterrupted_runs(task)
    source = expected.folder.parent / "data"
    if moment == 1:  # otherwise nothing would have been saved within the epoch
        with pytest.raises(Interrupted):
            at = CallAt(lambda: os.kill(os.getpid(), signal.SIGTERM), epoch=1, batch=moment)
            fit(tmp_path / "cut", source, at, task=task)
    else:
        with pytest.raises(RuntimeError, match="power"):
            fit(tmp_path / "cut", source, CallAt(cut_power, epoch=1, batch=moment), task=task)
    assert_same_run(expected, fit(tmp_path / "cut", source, resume=True, task=task))


def test_an_epoch_that_max_time_cut_short_continues_to_the_bit(
    image_folder: Path, uninterrupted: RunFolder, tmp_path: Path
) -> None:
    class OutOfTime(L.Callback):  # as Lightning's Timer
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            trainer.should_stop = trainer.global_step == 4

    run = fit(tmp_path / "cut", image_folder, OutOfTime())
    assert [(row["epoch"], row["step"]) for row in run.history] == [(1, 3), (2, 4)]
    cut_short = run.history[1]["seconds"]
    run = fit(tmp_path / "cut", image_folder, resume=True)
    assert_same_run(uninterrupted, run)
    assert run.history[1]["seconds"] > cut_short


@pytest.mark.slow
def test_an_epoch_that_max_steps_cut_short_continues(image_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "cut"))
    task, data = CLASSIFICATION.make_task, CLASSIFICATION.make_data
    make_trainer(run, max_steps=4).fit(task(), data(image_folder))
    make_trainer(run, max_steps=8).fit(task(), data(image_folder), ckpt_path=run.last, weights_only=True)
    assert [(row["epoch"], row["step"]) for row in run.history] == [(1, 3), (2, 6), (3, 8)]
    make_trainer(run).fit(task(), data(image_folder), ckpt_path=run.last, weights_only=True)
    assert [(row["epoch"], row["step"]) for row in run.history] == [(1, 3), (2, 6), (3, 9)]


def test_second_interrupt_stops_at_once_and_keeps_the_epoch(
    image_folder: Path, uninterrupted: RunFolder, tmp_path: Path
) -> None:
    def interrupt_twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path / "cut", image_folder, CallAt(interrupt_twice, epoch=1))  # during validation, on averages
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further signals while it shuts down
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert_same_run(uninterrupted, fit(tmp_path / "cut", image_folder, resume=True))


def test_a_signal_waits_for_the_accumulated_step(image_folder: Path, tmp_path: Path) -> None:
    """Otherwise the gradients accumulated so far would be lost."""
    uninterrupted = train_run(tmp_path / "uninterrupted", image_folder, trainer_accumulate_grad_batches=2)
    at = CallAt(lambda: os.kill(os.getpid(), signal.SIGTERM), epoch=1, batch=2)  # the first of two accumulated batches
    with pytest.raises(Interrupted):
        train_run(tmp_path / "cut", image_folder, at, trainer_accumulate_grad_batches=2)
    last = tmp_path / "cut/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["global_step"] == 3 + 2
    resumed = train_run(tmp_path / "cut", image_folder, resume=last, trainer_accumulate_grad_batches=2)
    assert_same_run(uninterrupted, resumed)


def test_a_disk_that_is_full_for_a_while_ends_no_run(
    image_folder: Path, uninterrupted: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = no_large_files()
    enter = CallAt(full.__enter__, epoch=1, batch=0)
    leave = CallAt(lambda: full.__exit__(None, None, None), epoch=2, batch=0)
    run = fit(tmp_path / "run", image_folder, enter, leave)
    assert capsys.readouterr().out.count("could not save") == 1
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert torch.load(run.last, weights_only=True)["epoch"] == 2
    assert torch.equal(
        checkpoint_weights(run.last)["model.fc.weight"], checkpoint_weights(uninterrupted.last)["model.fc.weight"]
    )
    assert sorted(p.name for p in run.last.parent.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_a_disk_that_is_full_at_the_end_keeps_the_last_checkpoint(
    image_folder: Path, uninterrupted: RunFolder, tmp_path: Path
) -> None:
    full = no_large_files()
    try:
        with pytest.raises(OSError, match=r"last epoch of the run could not be saved: .*as ckpt_path to resume"):
            fit(tmp_path / "run", image_folder, CallAt(full.__enter__, epoch=1, batch=0))
    finally:
        full.__exit__(None, None, None)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 0  # of the first epoch
    assert_same_run(uninterrupted, fit(tmp_path / "run", image_folder, resume=True))


def test_a_run_that_was_killed_at_its_end_is_finished(image_folder: Path, tmp_path: Path) -> None:
    folder = tmp_path / "run"
    arguments = fit_arguments(image_folder, folder, ckpt_path="last")
    assert main(arguments) == 0
    (folder / "metrics.csv").unlink()
    shutil.rmtree(folder / "weights")
    assert main(arguments) == 0
    assert len((folder / "metrics.csv").read_text().splitlines()) == 2 and check_folder(folder / "weights") == []


def make_splits(folder: Path) -> Path:
    """Write train/, val/ and test/."""
    for split in ("train", "val", "test"):
        make_image_folder(folder / split, per_class=6)
    return folder


def overwritten(content: bytes) -> bytes:
    """Replace the image by text, which the check before the run finds."""
    return b"not an image"


def damaged(content: bytes) -> bytes:
    """Change a byte in the middle, which the check before the run does not find."""
    middle = len(content) // 2
    return content[:middle] + bytes([content[middle] ^ 0xFF]) + content[middle + 1 :]


@pytest.mark.parametrize(
    ("damage", "reason"),
    [
        pytest.param(overwritten, "1 of 18 test images cannot be used", marks=pytest.mark.slow),
        (damaged, "class1/3.png cannot be read"),
    ],
)
def test_a_run_resumes_after_images_were_damaged(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: Any, reason: str
) -> None:
    """The run is stopped after its first epoch, and one image of each split is damaged before it resumes."""
    data, folder = make_splits(tmp_path / "data"), tmp_path / "run"
    arguments = fit_arguments(data, folder, ckpt_path="last", trainer__max_epochs=2)
    assert main([*arguments, f"--trainer.callbacks={callback_option(CrashAfterFirstEpoch)}"]) == 1
    for split in ("train", "val", "test"):
        file = data / split / "class1/3.png"
        file.write_bytes(damage(file.read_bytes()))
    capsys.readouterr()
    with pytest.warns(UserWarning, match="skipped: image") as warned:
        assert main(arguments) == 0
    assert sum("skipped" in str(warning.message) for warning in warned) == 2
    printed = capsys.readouterr().out
    assert "Resuming from epoch 2 of 2 (step 2 of 4)" in printed
    assert ("image files have changed" in printed) == (damage is overwritten)  # the fingerprint covers names and sizes
    assert "Warning: could not test the weights: " in printed and reason in printed
    assert f"acmix-zoo test --config {folder / 'config.yaml'}" in printed
    assert check_folder(folder / "weights") == []
    make_image_folder(tmp_path / "more" / "test", per_class=6)
    shutil.copy(tmp_path / "more/test/class1/3.png", data / "test/class1/3.png")
    assert main(["test", "--config", str(folder / "config.yaml")]) == 0
    assert "test: accuracy " in capsys.readouterr().out
