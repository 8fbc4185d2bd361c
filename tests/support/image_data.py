"""Image folders that tests write, and a Lightning module that records the batches it gets."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from torch import Tensor, nn

from acmix_zoo.data import ImageDataModule, open_source


def write_image(path: Path, value: int = 128) -> None:
    """Write an RGB image of 9×8 pixels in one shade of red."""
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new("RGB", (9, 8), (value, 0, 0)).save(path)


def write_files(root: Path, *names: str) -> Path:
    """Write files: images in different shades of red, and text files for other extensions than .png and .jpg."""
    for number, name in enumerate(names):
        file = root / name
        if file.suffix.lower() in (".png", ".jpg"):
            write_image(file, number)
        else:
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text("text")
    return root


def link(path: Path, target: str | Path) -> None:
    """Create a symbolic link and its folder."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.symlink_to(target)


def write_class_folders(root: Path, count: int = 6, classes: str = "ab", split: str = "") -> Path:
    """Write `count` grey images of 20×16 pixels for each class, a letter of `classes`. All images are different."""
    for label, name in enumerate(classes):
        (root / split / name).mkdir(parents=True)
        for number in range(count):
            Image.new("L", (20, 16), 100 * label + number).save(root / split / name / f"{number}.png")
    return root


def write_digits(root: Path, **per_class: int) -> Path:
    """Write real images of digits, 8×8 pixels, as class folders.

    Args:
        root: the folder.
        per_class: number of images of each class for each split. No image is in two splits.
    """
    images = open_source("digits").splits["train"]
    members = [np.flatnonzero(images.targets == label) for label in range(10)]
    start = 0
    for split, count in per_class.items():
        for label, indices in enumerate(members):
            (root / split / str(label)).mkdir(parents=True)
            for index in indices[start : start + count].tolist():
                images.image(index).convert("L").save(root / split / str(label) / f"{index:05d}.png")
        start += count
    return root


def make_data_module(source: Path | str, **kwargs: Any) -> ImageDataModule:
    """Return a data module with small images and batches."""
    return ImageDataModule(str(source), **{"image_size": 16, "batch_size": 4, "val_fraction": 0.25} | kwargs)


QUIET: dict[str, Any] = {
    "accelerator": "cpu",
    "logger": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
    "num_sanity_val_steps": 0,
}
"""Options of a trainer that prints nothing."""


class Recorder(L.LightningModule):
    """Trains one number and records its batches.

    Args:
        stop_at: number of training steps after which to interrupt the run; -1 for never.

    Attributes:
        seen: for each training batch the epoch, the sum of the pixels and the classes.
        tested: the classes of all evaluation batches.
    """

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[tuple[int, float, list[float]]] = []
        self.tested: list[int] = []
        self.stop_at = stop_at

    def training_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        x, y = batch
        self.seen.append((self.current_epoch, float(x.double().sum()), y.flatten().tolist()))
        return (self.weight - x.mean()) ** 2

    def validation_step(self, batch: tuple[Tensor, Tensor], index: int) -> None:
        self.tested += batch[1].tolist()

    test_step = validation_step

    def predict_step(self, batch: tuple[Tensor, Tensor], index: int) -> Tensor:
        return batch[1]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def assert_resuming_repeats_the_batches(
    make_data: Callable[[], ImageDataModule], folder: Path, stop_at: int, steps: int, **options: Any
) -> None:
    """Assert that a run that is stopped and resumed gets the batches of an uninterrupted one.

    Args:
        make_data: returns the data module of a run.
        folder: where to write the checkpoints.
        stop_at: number of training steps after which the run is stopped.
        steps: number of training steps of the whole run, which has three epochs.
        options: more arguments of the trainer.
    """

    def run(name: str, model: Recorder, resume: Path | None = None) -> list[Any]:
        every_step = ModelCheckpoint(folder / name, save_last=True, every_n_train_steps=1, save_top_k=1)
        trainer = L.Trainer(max_epochs=3, callbacks=[every_step], **QUIET, **options)
        try:
            trainer.fit(model, make_data(), ckpt_path=resume, weights_only=True)
        except SystemExit:
            assert model.stop_at >= 0
        return model.seen

    uninterrupted = run("uninterrupted", Recorder())
    assert len(uninterrupted) == steps == len({total for _, total, _ in uninterrupted})
    assert run("stopped", Recorder(stop_at)) == uninterrupted[:stop_at]
    assert run("resumed", Recorder(), folder / "stopped/last.ckpt") == uninterrupted[stop_at:]
