"""Compare an exported file with its network: how far the logits differ, and what that does to the accuracy."""

from __future__ import annotations

from collections.abc import Iterable
from typing import NamedTuple

import torch
from torch import Tensor

from acmix_zoo.export.exportable import Network

TOLERANCE = 1e-3
"""Largest difference of the logits of a float32 file, relative to the largest logit."""


class CheckBatch(NamedTuple):
    """Images to compare the results for.

    Attributes:
        images: (B, C, H, W) float32, normalised.
        targets: (B,) int64, their classes; -1 if a class is unknown.
    """

    images: Tensor
    targets: Tensor


class Agreement(NamedTuple):
    """How well a file agrees with its network.

    Attributes:
        images: number of images.
        difference: the largest absolute difference of two logits.
        scale: the largest absolute logit of the network.
        same_class: number of images for which both have the same most probable class.
        labelled: number of images whose class is known.
        network_correct: number of these that the network classifies correctly.
        file_correct: number of these that the file classifies correctly.
    """

    images: int = 0
    difference: float = 0.0
    scale: float = 0.0
    same_class: int = 0
    labelled: int = 0
    network_correct: int = 0
    file_correct: int = 0

    @property
    def is_close(self) -> bool:
        """Whether the logits agree within the `TOLERANCE`."""
        return self.difference <= TOLERANCE * max(self.scale, 1.0)


@torch.inference_mode()
def compare(network: Network, exported: Network, batches: Iterable[CheckBatch]) -> Agreement:
    """Run a network and its exported file on the same images and return how well they agree."""
    total = Agreement()
    for images, targets in batches:
        expected, found = network(images), exported(images)  # (B, classes)
        difference = float((found - expected).abs().max())
        if difference != difference:  # not a number
            difference = float("inf")
        classes, found_classes = expected.argmax(1), found.argmax(1)  # (B,)
        total = Agreement(
            total.images + len(images),
            max(total.difference, difference),
            max(total.scale, float(expected.abs().max())),
            total.same_class + int((classes == found_classes).sum()),
            total.labelled + int((targets >= 0).sum()),
            total.network_correct + int((classes == targets).sum()),
            total.file_correct + int((found_classes == targets).sum()),
        )
    return total
