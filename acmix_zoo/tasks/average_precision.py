"""`AveragePrecision`: COCO's metric for boxes and masks, the same on any number of processes."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torchmetrics.detection import MeanAveragePrecision

from acmix_zoo.data.boxes.coco_api import coco_api
from acmix_zoo.models.task_kinds import DETECTION
from acmix_zoo.tasks.gather import gather
from acmix_zoo.tasks.metrics import TaskMetrics

_DETECTIONS = (1, 10, 100)  # per image, as in COCO
_NAMES = {
    "map": "map", "map_50": "map50", "map_75": "map75",
    "map_small": "map_small", "map_medium": "map_medium", "map_large": "map_large",
}  # fmt: skip


class AveragePrecision(TaskMetrics):
    """Mean average precision over IoU thresholds from 0.5 to 0.95, as COCO defines it.

    torchmetrics computes it. Its own synchronisation expects the same number of images in every process, and gathers
    them in an order that depends on the number of processes. Here, images are gathered by their number instead.

    Args:
        num_classes: number of classes, without the background.
        has_masks: also measure masks.
    """

    def __init__(self, num_classes: int, has_masks: bool = False) -> None:
        super().__init__()
        self.num_classes, self.has_masks = num_classes, has_masks
        self.metric = self._new_metric()
        self.numbers: list[int] = []
        self._class_scores: dict[str, list[float]] = {}

    def _new_metric(self) -> MeanAveragePrecision:
        metric = MeanAveragePrecision(
            iou_type=("bbox", "segm") if self.has_masks else "bbox",
            max_detection_thresholds=list(_DETECTIONS),
            extended_summary=True,  # class_metrics would evaluate each class again
            backend=coco_api().name,
            sync_on_compute=False,
        )
        metric.warn_on_many_detections = False  # the others are left out, as COCO's own evaluation does
        return metric

    def add(self, number: int, detections: dict[str, Tensor], target: dict[str, Tensor]) -> None:
        """Count an image.

        Args:
            number: its number in the split.
            detections: boxes (N, 4), labels (N,), scores (N,) and, with masks, masks (N, 1, H, W) between 0 and 1.
            target: boxes (M, 4), labels (M,), iscrowd (M,), area (M,) and, with masks, masks (M, H, W).
        """
        kept = {name: detections[name].detach().float().cpu() for name in ("boxes", "scores")}
        kept["labels"] = detections["labels"].cpu()
        truth = {name: target[name].cpu() for name in ("boxes", "labels", "iscrowd", "area")}
        if self.has_masks:
            kept["masks"] = detections["masks"].detach().cpu().squeeze(1) > 0.5
            truth["masks"] = target["masks"].cpu() > 0
        self.metric.update([kept], [truth])
        self.numbers.append(number)

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics of all images of all processes: map, map50, map75, those of three sizes of objects as far
        as there are any, and the same for masks with the prefix "mask_"."""
        result = self._gathered().compute()
        scores: dict[str, Tensor] = {}
        for kind, prefix in (("bbox", ""), ("segm", "mask_")) if self.has_masks else (("", ""),):
            for theirs, ours in _NAMES.items():
                value = result[f"{kind}_{theirs}" if kind else theirs]
                if value >= 0 or ours == "map":  # -1: there are no such objects
                    scores[prefix + ours] = value.clamp(min=0)
        self._class_scores = self._scores_of_classes(result)
        return scores

    def _scores_of_classes(self, result: dict[str, Any]) -> dict[str, list[float]]:
        scores = {name: [float("nan")] * self.num_classes for name in DETECTION.class_metrics}
        key = "bbox_precision" if self.has_masks else "precision"
        if key in result:  # else there are no images
            # (thresholds, recall levels, classes, sizes, numbers of detections); -1: there are no such objects
            precision = result[key][:, :, :, 0, -1]
            for label, of_class in zip(_flat(result["classes"]), precision.unbind(2), strict=True):
                if (of_class > -1).all():
                    scores["AP"][int(label) - 1] = float(of_class.mean())
                    scores["AP50"][int(label) - 1] = float(of_class[0].mean())  # the first threshold is 0.5
        return scores

    def class_scores(self) -> dict[str, list[float]]:
        """Return the average precision of each class from the last `compute`, over all IoU thresholds (AP) and at a
        threshold of 0.5 (AP50). A class without objects has NaN."""
        return self._class_scores

    def reset(self) -> None:
        """Forget all images."""
        self.metric.reset()
        self.numbers = []

    def images(self) -> list[tuple[int, dict[str, Any]]]:
        """Return the images of this process, each with its number and what torchmetrics keeps of it."""
        state, count = self.metric.metric_state, len(self.numbers)
        columns = [values if len(values) else [None] * count for values in state.values()]  # masks may not be used
        return [
            (number, dict(zip(state, values, strict=True)))
            for number, values in zip(self.numbers, zip(*columns, strict=True), strict=True)
        ]

    def _gathered(self) -> MeanAveragePrecision:
        """Return the metric with the images of all processes in the order of their numbers."""
        images = dict(sorted(gather(self.images()), key=lambda pair: pair[0]))
        metric = self._new_metric()
        metric.update([], [])  # else it warns that there was nothing to compute
        state: dict[str, Any] = metric.metric_state
        for name, values in state.items():
            values.extend(image[name] for image in images.values() if image[name] is not None)
        return metric


def _flat(value: Tensor) -> list[float]:
    return torch.atleast_1d(value).tolist()  # type: ignore[no-any-return]
