"""The tasks that a network can be trained for: their names, their metrics, and the classes of their networks."""

from __future__ import annotations

import importlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class TaskKind:
    """A task, as weight folders, model cards and run folders need to know it.

    Attributes:
        name: its name in recipes and config.json.
        title: its name in text, such as "image classification".
        pipeline_tag: its name on the Hugging Face Hub.
        main_metric: the validation metric that decides which epoch is the best. It is between 0 and 1, and higher is
            better.
        metrics: the metrics that are printed and plotted, with their labels, the main one first. All are between 0 and
            1.
        other_metrics: further metrics that are recorded, also between 0 and 1.
        class_metrics: what the scores of a single class are called, the main one first; () if classes have no scores.
        output: a line of Python for the model card, which calls the network and states what it returns.
        builder: "module:class" of the `TaskNetwork`; "" if timm builds the network.
        package: the package that the builder needs and only an extra installs; "" if there is none.
        extra: the extra of acmix-zoo that installs it.
    """

    name: str
    title: str
    pipeline_tag: str
    main_metric: str
    metrics: Mapping[str, str]
    output: str
    other_metrics: tuple[str, ...] = ()
    class_metrics: tuple[str, ...] = ()
    builder: str = ""
    package: str = ""
    extra: str = ""

    @property
    def main_label(self) -> str:
        """The label of the main metric."""
        return self.metrics[self.main_metric]

    def network_class(self) -> Any:
        """Import and return the `TaskNetwork` of this task.

        Raises:
            ModuleNotFoundError: a package is missing. The message says how to install it.
        """
        if self.package:
            try:
                importlib.import_module(self.package)
            except ModuleNotFoundError as error:
                raise ModuleNotFoundError(
                    f"{error}. A network for {self.title} needs {self.package}. Install it with: "
                    f"pip install 'acmix-zoo[{self.extra}]'"
                ) from error
        module, _, name = self.builder.partition(":")
        return getattr(importlib.import_module(module), name)


CLASSIFICATION = TaskKind(
    name="classification",
    title="image classification",
    pipeline_tag="image-classification",
    main_metric="top1",
    metrics={"top1": "accuracy", "top5": "top-5 accuracy"},
    output="logits = model(images)  # (B, {channels}, {height}, {width}) -> (B, {classes})",
)
SEGMENTATION = TaskKind(
    name="segmentation",
    title="semantic segmentation",
    pipeline_tag="image-segmentation",
    main_metric="miou",
    metrics={"miou": "mIoU", "pixel_accuracy": "pixel accuracy"},
    output="logits = model(images)  # (B, {channels}, H, W) -> (B, {classes}, H, W), for any H and W",
    class_metrics=("IoU",),
    builder="acmix_zoo.models.segmenter:Segmenter",
    package="segmentation_models_pytorch",
    extra="segment",
)
DETECTION = TaskKind(
    name="detection",
    title="object detection",
    pipeline_tag="object-detection",
    main_metric="map",
    metrics={"map": "mAP", "map50": "AP50"},
    other_metrics=(
        *("map75", "map_small", "map_medium", "map_large"),
        *("mask_map", "mask_map50", "mask_map75", "mask_map_small", "mask_map_medium", "mask_map_large"),
    ),
    output="boxes = model(images)  # a dict with boxes, scores and labels for each image",
    class_metrics=("AP", "AP50"),
    builder="acmix_zoo.models.detector:Detector",
)
TASK_KINDS = {kind.name: kind for kind in (CLASSIFICATION, SEGMENTATION, DETECTION)}
"""Every task by its name."""


def task_kind(name: Any) -> TaskKind:
    """Return the task of a name.

    Raises:
        ValueError: there is no such task.
    """
    if isinstance(name, str) and name in TASK_KINDS:
        return TASK_KINDS[name]
    raise ValueError(f"unknown task {str(name)[:60]!r}. Expected {', '.join(TASK_KINDS)}")


def config_task(config: Mapping[str, Any]) -> TaskKind:
    """Return the task that a config.json states. Without one, its network is a classifier.

    Raises:
        ValueError: there is no such task.
    """
    return task_kind(config.get("task", CLASSIFICATION.name))
