"""Short training runs in this process: an image folder, a tiny model, quiet trainers and interruptions."""

from __future__ import annotations

import json
import os
import resource
import signal
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image
from torch import Tensor, nn

from acmix_zoo.data import ImageDataModule
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder

MODEL = "test_resnet"  # timm's smallest ResNet; it has batch norm, whose counters are integers

# Options of a short `acmix-zoo fit`, in addition to data.source and run.folder.
SHORT_RUN = {
    "model.model": MODEL, "data.image_size": 32, "data.batch_size": 8, "data.val_fraction": 0.25,
    "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "speed.loader_seconds": 0,
}  # fmt: skip


def make_image_folder(folder: Path, classes: int = 3, per_class: int = 12) -> Path:
    """Write class folders of coloured noise. Each class has its own colour, which a short training run learns."""
    generator = torch.Generator().manual_seed(12 - per_class)  # train/ and a smaller test/ have different images
    for c in range(classes):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(per_class):
            pixels = torch.randint(0, 100, (32, 32, 3), generator=generator, dtype=torch.uint8)
            pixels[..., c % 3] += 150
            Image.fromarray(pixels.numpy()).save(folder / f"class{c}" / f"{i}.png")
    return folder


def make_trainer(*callbacks: L.Callback, epochs: int = 3, **kwargs: Any) -> L.Trainer:
    """Return a trainer on the CPU that prints and logs nothing."""
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    return L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **kwargs})


def make_task(**kwargs: Any) -> ClassificationTask:
    """Return a task for three classes with dropout, always with the same initial weights."""
    torch.manual_seed(0)
    return ClassificationTask(MODEL, **{"num_classes": 3, "model_kwargs": {"drop_rate": 0.2}, **kwargs})


def make_data(folder: Path, **kwargs: Any) -> ImageDataModule:
    """Return the data of an image folder, a quarter of it for validation."""
    return ImageDataModule(str(folder), **{"image_size": 32, "batch_size": 8, "val_fraction": 0.25, **kwargs})


def fit_arguments(source: Path | None, folder: Path | None, **changes: Any) -> list[str]:
    """Return the arguments of `acmix-zoo fit` for a short run.

    Args:
        source: the images. None leaves the option out.
        folder: the run folder. None leaves the option out.
        changes: further options, with two underscores for a dot, such as trainer__max_epochs=2.
    """
    options = {**SHORT_RUN, "data.source": source, "run.folder": folder}
    options |= {name.replace("__", "."): value for name, value in changes.items()}
    return ["fit", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


def three_epochs(source: Path, folder: Path, *more: str) -> list[str]:
    """Return the arguments of a `fit` of three epochs with averaged weights, followed by further arguments."""
    settings = {"model__ema_decay": 0.9, "model__lr": 0.01, "trainer__max_epochs": 3}
    return [*fit_arguments(source, folder, **settings), *more]


def resume_command(folder: Path, run: str, **changes: Any) -> list[str]:
    """Return the arguments of a `fit` of two epochs of two steps on folder/images. Given again, they resume the run."""
    two_epochs = {"model__lr": 0.001, "trainer__max_epochs": 2, "trainer__limit_train_batches": 2}
    return fit_arguments(folder / "images", folder / run, **{"ckpt_path": "last", **two_epochs, **changes})


def callback_option(callback: type[L.Callback], **init_args: Any) -> str:
    """Return the value of `--trainer.callbacks` for a callback that is defined in this file."""
    return json.dumps({"class_path": f"{__name__}.{callback.__name__}", "init_args": init_args})


# ---- interruptions


class NanLoss(nn.CrossEntropyLoss):
    """A loss that is NaN for its n-th batch only."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        return super().forward(x, y) * (float("nan") if self.left == -1 else 1)


class CallAt(L.Callback):
    """Call a function once, after a given training batch of a given epoch, or with `batch=None` in its validation."""

    def __init__(self, action: Callable[[], Any], epoch: int, batch: int | None = None) -> None:
        self.action, self.epoch, self.batch = action, epoch, batch

    def on_train_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *args: Any) -> None:
        if (trainer.current_epoch, args[-1]) == (self.epoch, self.batch):
            self.action()

    def on_validation_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
        if self.batch is None and trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            self.epoch = -1  # once
            self.action()


def cut_power() -> None:
    """Raise a RuntimeError, as in a crash."""
    raise RuntimeError("the power is cut")


class CrashInSecondEpoch(CallAt):
    """Crash after the first batch of the second epoch. For `--trainer.callbacks`."""

    def __init__(self) -> None:
        super().__init__(cut_power, epoch=1, batch=0)


class CrashAfterFirstEpoch(L.Callback):
    """Crash before the first batch of the second epoch. For `--trainer.callbacks`."""

    def on_train_epoch_start(self, trainer: L.Trainer, module: L.LightningModule) -> None:
        if trainer.current_epoch == 1:
            cut_power()


class InterruptTest(L.Callback):
    """Send Ctrl-C during the final test. For `--trainer.callbacks`."""

    def on_test_batch_end(self, *_: Any) -> None:
        os.kill(os.getpid(), signal.SIGINT)


class SignalBeforeFirstStep(L.Callback):
    """Send a signal after the data has been read and before the first step. For `--trainer.callbacks`."""

    def __init__(self, name: str) -> None:
        self.number = getattr(signal, name)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        os.kill(os.getpid(), self.number)


class NanInSecondProcess(L.Callback):
    """Replace one image of the second process by NaN at step 20. For `--trainer.callbacks`."""

    def on_train_batch_start(self, trainer: L.Trainer, module: L.LightningModule, batch: Any, index: int) -> None:
        if trainer.global_rank == 1 and trainer.global_step == 20:
            batch[0][3] = float("nan")


@contextmanager
def no_large_files() -> Iterator[None]:
    """Make the kernel refuse to write files of more than 100 kB, which fails like a full disk."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def train_run(
    folder: Path, images: Path, *callbacks: L.Callback, resume: Path | None = None, **kwargs: Any
) -> RunFolder:
    """Train for three epochs of six steps with averaged weights, and return the run.

    Args:
        folder: the run folder.
        images: the image folder.
        resume: the checkpoint to resume.
        kwargs: `save_every` of the run folder, arguments of the trainer with the prefix "trainer_", or of the task.
    """
    of_trainer = {key: kwargs.pop(key) for key in list(kwargs) if key.startswith("trainer_")}
    run = RunFolder(str(folder), save_every=kwargs.pop("save_every", None))
    trainer = make_trainer(*callbacks, run, **{key.removeprefix("trainer_"): v for key, v in of_trainer.items()})
    data = make_data(images, batch_size=4)
    trainer.fit(make_task(ema_decay=0.9, **kwargs), data, ckpt_path=resume, weights_only=True)
    return run


# ---- comparing runs


def checkpoint_weights(path: Path) -> dict[str, Tensor]:
    """Return the averaged weights of a checkpoint and, with the prefix "trained.", the trained ones."""
    checkpoint = torch.load(path, weights_only=True)
    trained = {f"trained.{name}": value for name, value in checkpoint["current_model_state"].items()}
    return {**checkpoint["state_dict"], **trained}


def checkpoint_state(path: Path) -> dict[str, Tensor]:
    """Return the weights of a checkpoint that were evaluated."""
    state: dict[str, Tensor] = torch.load(path, weights_only=True)["state_dict"]
    return state


def have_same_weights(a: Path, b: Path) -> bool:
    """Return whether two checkpoints have the same weights, to the bit."""
    first, second = checkpoint_state(a), checkpoint_state(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


def assert_same_run(a: RunFolder, b: RunFolder) -> None:
    """Assert that two runs have the same weights, to the bit, and the same history except for times."""
    for one, two in ((a.last, b.last), (a.best, b.best)):
        first, second = checkpoint_weights(one), checkpoint_weights(two)
        assert first.keys() == second.keys()
        different = [name for name in first if not torch.equal(first[name], second[name])]
        assert not different, f"{len(different)} of {len(first)} tensors differ: {different[:5]}"
    times = ("seconds", "images_per_second")
    rows = [[{k: v for k, v in row.items() if k not in times} for row in run.history] for run in (a, b)]
    assert rows[0] == rows[1]
    assert all(0 < row["seconds"] < 100 for run in (a, b) for row in run.history)  # of an epoch, not since boot
