"""What an evaluation found beyond its metrics: which classes are confused, and which images are classified wrongly."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from acmix_zoo.tasks.gather import gather

_MOST_CLASSES = 4096  # the confusion matrix of more would need gigabytes


class Mistake(NamedTuple):
    """An image that was classified wrongly.

    Attributes:
        position: position of the image in its split.
        truth: its class.
        predicted: the class with the highest probability.
        probability: that probability, between 0 and 1.
    """

    position: int
    truth: int
    predicted: int
    probability: float


class Evaluation(NamedTuple):
    """The details of an evaluation.

    Attributes:
        confusion: (classes, classes) integers, the number of images or pixels of each true class (rows) that were
            assigned to each class (columns). None if the task has no such matrix, or has too many classes.
        unit: what the matrix counts: "images" or "pixels".
        mistakes: the wrongly classified images, most confident first. Empty if their positions are not known.
    """

    confusion: Tensor | None = None
    unit: str = "images"
    mistakes: Sequence[Mistake] = ()


def evaluate_classes(seen: Tensor, positions: Sequence[int] | None, num_classes: int) -> Evaluation:
    """Return the details of a classifier's evaluation. All processes have to call this.

    Args:
        seen: (N, 3) class, predicted class and probability of each image that this process has evaluated.
        positions: the positions of these images in the split, in the same order; None if they are not known.
        num_classes: number of classes.
    """
    parts = gather([(seen.cpu(), positions)])
    rows = torch.cat([rows for rows, _ in parts])
    truth, predicted = rows[:, 0].long(), rows[:, 1].long()
    confusion = None
    if num_classes <= _MOST_CLASSES:
        pairs = torch.bincount(truth * num_classes + predicted, minlength=num_classes**2)
        confusion = pairs.view(num_classes, num_classes)
    mistakes = [
        Mistake(position, int(row[0]), int(row[1]), row[2])
        for own, known in parts
        for position, row in zip(known or (), own.tolist(), strict=False)  # options may limit the number of batches
        if row[0] != row[1]
    ]
    return Evaluation(confusion, mistakes=sorted(mistakes, key=lambda each: (-each.probability, each.position)))
