"""The tasks that tests of run folders, weight folders and commands run for: small data, and a short `fit` of each."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import torch
from PIL import Image
from support.box_data import write_coco
from support.training import MODEL, SHORT_RUN, make_data, make_image_folder, make_task

from acmix_zoo.data import MaskDataModule
from acmix_zoo.data.boxes.box_module import BoxDataModule
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.models.task_kinds import TASK_KINDS, TaskKind
from acmix_zoo.tasks import SegmentationTask, Task
from acmix_zoo.tasks.detection import DetectionTask

COLOURS = ((210, 60, 60), (60, 200, 60), (60, 60, 210))


@dataclass(frozen=True)
class TaskCase:
    """A task with data that a short run learns.

    Attributes:
        name: the name of the task.
        write_data: writes a data set with train/, val/ and test/ into a folder.
        options: options of `acmix-zoo fit` besides source and run folder.
        predictions: what `predict` writes into the run folder.
        write_short_data: writes data of which an epoch has three steps.
        make_task: returns the task, always with the same initial weights. Takes its arguments.
        make_data: returns the data module of a folder.
        needs: packages without which the tests are skipped.
    """

    name: str
    write_data: Callable[[Path], Path]
    options: dict[str, Any] = field(hash=False)
    predictions: str
    write_short_data: Callable[[Path], Path]
    make_task: Callable[..., Task]
    make_data: Callable[[Path], ResumableDataModule]
    needs: tuple[str, ...] = ()

    @property
    def kind(self) -> TaskKind:
        return TASK_KINDS[self.name]

    def fit(self, source: Path, folder: Path, **changes: Any) -> list[str]:
        """Return the arguments of a short `fit`. In `changes`, two underscores mean a dot, and None leaves one out."""
        options = {"task": self.name, **self.options, "data.source": source, "run.folder": folder}
        options |= {name.replace("__", "."): value for name, value in changes.items()}
        return ["fit", *(f"--{name}={value}" for name, value in options.items() if value is not None)]


class TrainedTask(NamedTuple):
    """A finished run.

    Attributes:
        task: the task.
        source: its data.
        folder: its run folder.
    """

    task: TaskCase
    source: Path
    folder: Path


def write_classified_images(folder: Path) -> Path:
    """Write an image folder with train/, val/ and test/ of three classes."""
    for split, count in (("train", 9), ("val", 5), ("test", 4)):
        make_image_folder(folder / split, per_class=count)
    return folder


def write_masked_images(
    folder: Path,
    counts: tuple[int, int, int] = (9, 4, 3),
    size: tuple[int, int] = (40, 48),
    first_value: int = 0,
    void: int = 255,
) -> Path:
    """Write images/ and masks/ with train, val and test: noise with coloured rectangles of three classes.

    Args:
        counts: number of images of each split.
        size: height and width.
        first_value: value of the first class in a mask.
        void: value of the first row of each mask, which belongs to no class.
    """
    generator = torch.Generator().manual_seed(0)
    for split, count in zip(("train", "val", "test"), counts, strict=True):
        for kind in ("images", "masks"):
            (folder / kind / split).mkdir(parents=True)
        for number in range(count):
            mask = torch.zeros(size, dtype=torch.uint8)
            for value in (1, 2):
                top, left = (int(torch.randint(0, side // 2, (), generator=generator)) for side in size)
                mask[top : top + size[0] // 2, left : left + size[1] // 2] = value
            noise = torch.randint(-40, 40, (*size, 3), generator=generator)
            image = (torch.tensor(COLOURS)[mask.long()] + noise).clamp(0, 255).to(torch.uint8)
            mask += first_value
            mask[0] = void
            Image.fromarray(image.numpy()).save(folder / "images" / split / f"{number}.png")
            Image.fromarray(mask.numpy()).save(folder / "masks" / split / f"{number}.png")
    (folder / "classes.txt").write_text("ground\ngrass\nwater\n")
    return folder


SEGMENT = {
    "model.model": "test_resnet", "model.decoder": "unet",
    "model.decoder_kwargs": "{decoder_channels: [16, 16, 8, 8, 8]}", "model.lr": 0.01,
    "data.crop_size": "[32, 32]", "data.batch_size": 3,
    "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "speed.loader_seconds": 0,
}  # fmt: skip

# A longer run for processes that are killed, and for several processes: a network with batch norm, every augmentation.
SEGMENTATION = {
    "task": "segmentation", "data.crop_size": "[32, 32]", "data.resize": "[24, 48]", "data.color_jitter": True,
    "data.batch_size": 2, "model.model": "acmix_resnet_pico", "model.model_kwargs": "{drop_path_rate: 0.1}",
    "model.decoder": "unet", "model.losses": "{cross_entropy: 1, dice: 1}", "model.ema_decay": 0.95,
    "trainer.max_epochs": 3, "trainer.accelerator": "cpu", "trainer.logger": "false", "run.save_every": 3,
    "speed.loader_seconds": 0,
}  # fmt: skip


def make_segmentation_task(**kwargs: Any) -> SegmentationTask:
    """Return a task for three classes with dropout, always with the same initial weights."""
    torch.manual_seed(0)
    options = {"num_classes": 3, "decoder": "unet", "decoder_kwargs": {"decoder_channels": [16, 16, 8, 8, 8]}}
    return SegmentationTask(MODEL, **{**options, "model_kwargs": {"drop_path_rate": 0.2}, **kwargs})


def make_masks(folder: Path) -> MaskDataModule:
    """Return the data of a folder with masks, with every augmentation."""
    return MaskDataModule(str(folder), crop_size=(32, 32), resize=(24, 48), color_jitter=True, batch_size=3)


def write_boxed_images(folder: Path) -> Path:
    """Write a data set in COCO's format with train, val and test of three classes."""
    return write_coco(folder, train=9, val=4, test=3)


DETECT = {
    "model.model": "test_resnet", "model.detector": "fcos", "model.strides": "[4, 8]", "model.channels": 64,
    "model.lr": 0.01, "model.warmup_epochs": 0, "data.image_size": 48, "data.max_size": 64,
    "data.multi_scale": "[40, 48, 56]", "data.batch_size": 3,
    "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "speed.loader_seconds": 0,
}  # fmt: skip

# A longer run for several processes, which learns to find some of the squares.
DETECTION = {
    **DETECT, "task": "detection", "model.detector_kwargs": "{score_thresh: 0.05}", "model.ema_decay": 0.9,
    "data.multi_scale": "null", "data.batch_size": 2, "trainer.max_epochs": 12, "trainer.logger": "false",
}  # fmt: skip


def make_detection_task(**kwargs: Any) -> DetectionTask:
    """Return a task for three classes with dropout, always with the same initial weights."""
    torch.manual_seed(0)
    options = {"detector": "fcos", "strides": [4, 8], "channels": 64, "image_size": 48, "max_size": 64}
    return DetectionTask(MODEL, 3, **{**options, "model_kwargs": {"drop_path_rate": 0.2}, **kwargs})


def make_boxes(folder: Path) -> BoxDataModule:
    """Return the data of a folder in COCO's format, with every augmentation."""
    sizes = {"image_size": 48, "max_size": 64, "multi_scale": [40, 48, 56]}
    return BoxDataModule(str(folder), **sizes, vflip=0.5, batch_size=3)


CLASSIFICATION = TaskCase(
    "classification", write_classified_images, {**SHORT_RUN, "model.lr": 0.01}, "predictions.csv",
    make_image_folder, make_task, make_data,
)  # fmt: skip
TASKS = (
    CLASSIFICATION,
    TaskCase(
        "segmentation", write_masked_images, SEGMENT, "predictions", write_masked_images, make_segmentation_task,
        make_masks, ("segmentation_models_pytorch",),
    ),
    TaskCase(
        "detection", write_boxed_images, DETECT, "predictions.json",
        write_boxed_images, make_detection_task, make_boxes,
    ),
)  # fmt: skip


def skip_without_packages(task: TaskCase) -> None:
    """Skip a test if a package that the task needs is missing."""
    for package in task.needs:
        pytest.importorskip(package)
