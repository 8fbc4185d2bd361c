"""The task class and the data module of each task, by the name of the task. They are imported on demand."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, NamedTuple

from acmix_zoo.models.task_kinds import task_kind

if TYPE_CHECKING:
    from acmix_zoo.data.resumable import ResumableDataModule
    from acmix_zoo.tasks.task import Task


class TaskClasses(NamedTuple):
    """What trains and evaluates a task.

    Attributes:
        task: the LightningModule.
        data: the data module.
    """

    task: type[Task]
    data: type[ResumableDataModule]


# For each task of acmix_zoo.models.task_kinds: "module:class" of both classes, within acmix_zoo.
_CLASSES = {
    "classification": ("tasks.classification:ClassificationTask", "data.module:ImageDataModule"),
    "segmentation": ("tasks.segmentation:SegmentationTask", "data.masks.mask_module:MaskDataModule"),
    "detection": ("tasks.detection:DetectionTask", "data.boxes.box_module:BoxDataModule"),
}
TASK_NAMES = tuple(_CLASSES)
"""The names of all tasks."""


def task_classes(name: str) -> TaskClasses:
    """Return the classes of a task.

    Raises:
        ValueError: there is no such task.
    """
    loaded = []
    for path in _CLASSES[task_kind(name).name]:
        module, _, attribute = path.partition(":")
        loaded.append(getattr(importlib.import_module(f"acmix_zoo.{module}"), attribute))
    return TaskClasses(*loaded)
