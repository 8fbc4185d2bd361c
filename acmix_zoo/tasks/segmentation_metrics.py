"""Losses and metrics of semantic segmentation. Pixels without a class (`VOID`) are left out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torchmetrics.classification import MulticlassConfusionMatrix

from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.tasks.evaluation import Evaluation
from acmix_zoo.tasks.metrics import ExactMean, TaskMetrics


class CrossEntropy(nn.Module):
    """Mean cross-entropy of the pixels with a class, and 0 for a batch without any, where torch's gives NaN.

    Args:
        class_weights: the weight of each class; None for equal weights.
    """

    def __init__(self, class_weights: Sequence[float] | None) -> None:
        super().__init__()
        weights = None if class_weights is None else torch.tensor(class_weights, dtype=torch.float32)
        self.register_buffer("weights", weights, persistent=False)

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss, (), of logits (B, classes, H, W) and masks (B, H, W) int64."""
        weights: Tensor | None = self.weights  # type: ignore[assignment]
        total = cross_entropy(logits, masks, weights, ignore_index=VOID, reduction="sum")
        has_class = masks != VOID  # (B, H, W)
        count = has_class.sum() if weights is None else (weights[masks * has_class] * has_class).sum()
        return total / count.clamp(min=1e-6)


class WeightedLoss(nn.Module):
    """The weighted sum of several losses.

    Args:
        weights: the weight of each loss: "cross_entropy", "dice" or "lovasz".
        class_weights: the weight of each class in the cross-entropy; None for equal weights.

    Raises:
        ValueError: there is no loss, or an unknown one.
    """

    def __init__(self, weights: Mapping[str, float], class_weights: Sequence[float] | None) -> None:
        super().__init__()
        from segmentation_models_pytorch import losses

        made = {
            "cross_entropy": lambda: CrossEntropy(class_weights),
            "dice": lambda: losses.DiceLoss("multiclass", ignore_index=VOID),
            "lovasz": lambda: losses.LovaszLoss("multiclass", ignore_index=VOID),
        }
        if not weights or weights.keys() - made.keys():
            raise ValueError(f"losses={dict(weights)} is unknown. Expected weights of some of {', '.join(made)}")
        self.weights = dict(weights)
        self.parts = nn.ModuleDict({name: made[name]() for name in weights})  # type: ignore[no-untyped-call]

    def forward(self, logits: Tensor, masks: Tensor) -> Tensor:
        """Return the loss, (), of logits (B, classes, H, W) and masks (B, H, W) int64."""
        total = logits.new_zeros(())
        for name, part in self.parts.items():
            total = total + self.weights[name] * part(logits, masks).sum()  # Lovász: an empty tensor without any class
        return total


class SegmentationMetrics(TaskMetrics):
    """The loss, mean IoU, pixel accuracy, and the IoU of each class.

    All but the loss are computed from one confusion matrix of pixels, which is summed over batches and processes. A
    class that occurs neither in a mask nor in a prediction has no IoU, and does not count in the mean.

    Args:
        num_classes: number of classes.
    """

    def __init__(self, num_classes: int) -> None:
        confusion = MulticlassConfusionMatrix(num_classes, ignore_index=VOID, validate_args=False)
        super().__init__({"loss": ExactMean(), "confusion": confusion})
        self._class_iou = torch.zeros(0)
        self._confusion: Tensor | None = None

    def add_image(self, logits: Tensor, mask: Tensor) -> None:
        """Count an image.

        Args:
            logits: (classes, H, W).
            mask: (H, W) int64.
        """
        metrics = dict(self.metrics())
        metrics["confusion"].update(logits.argmax(0)[None], mask[None])
        has_class = mask != VOID  # (H, W)
        losses = cross_entropy(logits[None], mask[None], ignore_index=VOID, reduction="none")[0]  # (H, W)
        # an image without any class has no loss, but every process must update the metric
        metrics["loss"].update(losses[has_class].mean()[None] if has_class.any() else losses.new_zeros(0))

    def compute(self) -> dict[str, Tensor]:
        metrics = dict(self.metrics())
        self._confusion = metrics["confusion"].compute()  # (classes, classes): rows are the truth
        matrix = self._confusion.double()
        correct = matrix.diagonal()
        union = matrix.sum(0) + matrix.sum(1) - correct
        self._class_iou = correct / union  # (classes,), NaN for classes that do not occur
        return {
            "loss": metrics["loss"].compute(),
            "miou": self._class_iou.nanmean().float(),
            "pixel_accuracy": (correct.sum() / matrix.sum()).float(),
        }

    def evaluation(self, positions: Sequence[int] | None) -> Evaluation:
        return Evaluation(None if self._confusion is None else self._confusion.cpu(), "pixels")

    def class_scores(self) -> dict[str, list[float]]:
        return {"IoU": self._class_iou.tolist()}
