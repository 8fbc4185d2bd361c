"""Metrics that do not depend on how images are divided among processes and batches, or on interruptions of a run."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor, nn
from torchmetrics import Metric
from torchmetrics.classification import MulticlassAccuracy

from acmix_zoo.tasks.evaluation import Evaluation, evaluate_classes

_UNIT = 2**24  # a power of two, so that scaling is exact; losses above 1 keep all float32 digits


class ExactMean(Metric):
    """Mean of numbers, summed as integers in units of 2^-24, because a sum of floats depends on their order.

    Values are clamped to ±2^15. If any value is not finite, the mean is NaN.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    broken: Tensor
    _NAMES = ("total", "count", "broken")

    def __init__(self) -> None:
        super().__init__()
        for name in self._NAMES:
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        values = values.detach().float().flatten()
        finite = values.isfinite()
        units = torch.where(finite, values.clamp(-(2.0**15), 2.0**15), 0) * _UNIT
        self.total += units.round().long().sum()
        self.count += values.numel()
        self.broken += (~finite).sum()

    def compute(self) -> Tensor:
        """Return the mean so far, (), or NaN without values."""
        mean = self.total.float() / (self.count.float() * _UNIT)
        return torch.where(self.broken > 0, torch.nan, mean)

    def sums(self) -> Tensor:
        """Return the state of this process, (3,) integers."""
        return torch.stack([getattr(self, name) for name in self._NAMES])

    def restore(self, sums: Tensor) -> None:
        """Continue from a state that `sums` returned."""
        for name, value in zip(self._NAMES, sums, strict=True):
            setattr(self, name, value.to(getattr(self, name).device, copy=True))
        self._update_count = 1


class TaskMetrics(nn.ModuleDict):
    """The metrics of one split of a task's data, by name. Subclasses count batches.

    To be bit-identical on any number of processes, they should be computed from sums of integers.
    """

    def metrics(self) -> Iterator[tuple[str, Metric]]:
        """Yield the name of each metric, and the metric."""
        for name, metric in self.items():
            assert isinstance(metric, Metric)
            yield name, metric

    def compute(self) -> dict[str, Tensor]:
        """Return the value of each metric over all processes, which all have to call this."""
        return {name: metric.compute() for name, metric in self.metrics()}

    def reset(self) -> None:
        """Forget all batches."""
        for _, metric in self.metrics():
            metric.reset()

    def class_scores(self) -> dict[str, list[float]]:
        """Return the scores of each class by the names of `TaskKind.class_metrics`, NaN for a class without images."""
        return {}

    def evaluation(self, positions: Sequence[int] | None) -> Evaluation:
        """Return the details of the evaluation, before `reset`. All processes have to call this.

        Args:
            positions: the positions in the split of the images that this process has counted; None if not known.
        """
        return Evaluation()


class EvaluationMetrics(TaskMetrics):
    """The metrics of a classifier: the loss, top-1 accuracy and, with more than five classes, top-5 accuracy."""

    def __init__(self, num_classes: int) -> None:
        metrics: dict[str, Metric] = {
            "loss": ExactMean(),
            # micro: the fraction of images; torchmetrics' default is the mean over classes
            "top1": MulticlassAccuracy(num_classes, average="micro"),
        }
        if num_classes > 5:  # with five classes or fewer, top-5 is always 1
            metrics["top5"] = MulticlassAccuracy(num_classes, average="micro", top_k=5)
        super().__init__(metrics)
        self.num_classes = num_classes
        self._seen: list[Tensor] = []  # (B, 3) for each batch: class, predicted class, its probability

    def reset(self) -> None:
        super().reset()
        self._seen = []

    def evaluation(self, positions: Sequence[int] | None) -> Evaluation:
        seen = torch.cat(self._seen) if self._seen else torch.zeros(0, 3)
        return evaluate_classes(seen, positions, self.num_classes)

    def add_batch(self, logits: Tensor, classes: Tensor, losses: Tensor) -> None:
        """Count the images of a batch.

        Args:
            logits: (B, classes).
            classes: (B,) the true classes.
            losses: (B,) each image's loss.
        """
        probability, predicted = logits.softmax(-1).max(-1)
        self._seen.append(torch.stack([classes.float(), predicted.float(), probability.float()], 1))
        for name, metric in self.metrics():
            if name == "loss":
                metric.update(losses)
            elif len(classes):
                metric.update(logits, classes)
