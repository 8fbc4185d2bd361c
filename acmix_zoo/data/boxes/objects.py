"""`Objects`: the annotated boxes of an image, and `BoxCheck`, which finds the unusable ones before a run."""

from __future__ import annotations

from collections import defaultdict
from typing import Any, NamedTuple

import numpy as np

from acmix_zoo.data.boxes.coco_api import mask_areas
from acmix_zoo.data.wording import first_few

UNKNOWN = -1
"""The number of a class that the data set does not declare."""
_TOLERANCE = 1.0  # pixels; tools differ by one pixel in where an image ends


class Objects(NamedTuple):
    """The annotated objects of one image.

    Attributes:
        boxes: (N, 4) float32: left, top, right and bottom in pixels.
        classes: (N,) int64, numbers from 0.
        is_crowd: (N,) bool. A crowd or an object that is marked as difficult is left out of training, and detections of
            it are not counted as wrong.
        areas: (N,) float32, in pixels; the area of the mask if there is one.
        masks: N masks in COCO's run-length encoding; None if masks are not used.
    """

    boxes: np.ndarray
    classes: np.ndarray
    is_crowd: np.ndarray
    areas: np.ndarray
    masks: list[Any] | None = None

    def select(self, chosen: np.ndarray) -> Objects:
        """Return the objects for which `chosen`, (N,) bool, is true."""
        numbers = np.flatnonzero(chosen)
        masks = None if self.masks is None else [self.masks[i] for i in numbers]
        return Objects(self.boxes[numbers], self.classes[numbers], self.is_crowd[numbers], self.areas[numbers], masks)


def make_objects(
    boxes: Any,
    classes: Any,
    is_crowd: Any = None,
    areas: Any = None,
    masks: list[Any] | None = None,
) -> Objects:
    """Return objects from sequences.

    Without `is_crowd`, no object is a crowd. An area that is missing in `areas` is that of the mask, or without masks
    that of the box.
    """
    box_array = np.asarray(boxes, np.float32).reshape(-1, 4)
    count = len(box_array)
    measured = (box_array[:, 2:] - box_array[:, :2]).prod(1) if masks is None else mask_areas(masks)
    stated = [None] * count if areas is None else areas
    return Objects(
        box_array,
        np.asarray(classes, np.int64).reshape(count),
        np.zeros(count, bool) if is_crowd is None else np.asarray(is_crowd, bool).reshape(count),
        np.array([area or own for area, own in zip(stated, measured, strict=True)], np.float32),
        masks,
    )


def clip_boxes(boxes: np.ndarray, size: tuple[int, int]) -> tuple[np.ndarray, np.ndarray]:
    """Return boxes (N, 4) clipped to an image of `size` (width, height), and whether each has area in it, (N,) bool."""
    clipped = boxes.clip(0, [*size, *size]).astype(np.float32)
    return clipped, np.asarray((clipped[:, 2:] > clipped[:, :2]).all(1))


class BoxCheck:
    """Leave out unusable boxes, clip those that extend beyond their image, and count both.

    torchvision's detectors raise an error for a box without area, in the worst case after hours of training.
    """

    _LEFT_OUT = (
        "of unknown classes",
        "without area",
        "outside their image",
        "of unknown images",
        "without coordinates",
        "without a mask",
    )
    _CLIPPED = "clipped to their image"

    def __init__(self) -> None:
        self.counts: dict[str, int] = defaultdict(int)
        self.images: dict[str, list[str]] = defaultdict(list)
        self.unknown_classes: dict[str, None] = {}  # in order of appearance

    def count(self, kind: str, image: str, number: int = 1) -> None:
        """Count boxes of an image that are left out or clipped."""
        if number:
            self.counts[kind] += number
            self.images[kind].append(image)

    def count_unknown_class(self, image: str, name: str) -> None:
        """Count a box of a class that the data set does not declare."""
        self.count(self._LEFT_OUT[0], image)
        self.unknown_classes.setdefault(name)

    def clean(self, objects: Objects, size: tuple[int, int] | None, image: str) -> Objects:
        """Return the usable objects of an image.

        Args:
            objects: objects as annotated.
            size: (width, height) of the image in pixels; None if it is not known.
            image: the name of the image, for the summary.
        """
        boxes = objects.boxes
        has_numbers = np.isfinite(boxes).all(1)
        self.count("without coordinates", image, int((~has_numbers).sum()))
        has_area = np.asarray(has_numbers & (boxes[:, 2:] > boxes[:, :2]).all(1))
        self.count("without area", image, int((has_numbers & ~has_area).sum()))
        kept = objects.select(has_area)
        if kept.masks is not None:  # a detector would learn that the object is background
            has_mask = kept.is_crowd | (mask_areas(kept.masks) > 0)
            self.count("without a mask", image, int((~has_mask).sum()))
            kept = kept.select(has_mask)
        if size is None or not len(kept.boxes):
            return kept
        clipped, is_inside = clip_boxes(kept.boxes, size)
        is_clipped = is_inside & (np.abs(clipped - kept.boxes).max(1) > _TOLERANCE)
        self.count("outside their image", image, int((~is_inside).sum()))
        self.count(self._CLIPPED, image, int(is_clipped.sum()))
        return kept._replace(boxes=clipped).select(is_inside)

    def summary(self) -> str:
        """Return one line about the boxes that were left out or clipped, or "" if there are none."""
        parts = [self._part(kind) for kind in self._LEFT_OUT if self.counts[kind]]
        lines = [f"left out {', '.join(parts)}"] * bool(parts)
        if self.counts[self._CLIPPED]:
            lines.append(self._part(self._CLIPPED))
        return f"boxes: {'; '.join(lines)}" if lines else ""

    def advice(self) -> str:
        """Return what to do if no box is usable, as far as the reason is known."""
        return "Set data.masks to false if there are no masks" if self.counts["without a mask"] else ""

    def _part(self, kind: str) -> str:
        """Return the number of boxes of a kind and the first images with them: "3 without area (in a.png)"."""
        names = first_few(list(dict.fromkeys(self.images[kind])), 3)
        classes = f" {first_few(list(self.unknown_classes), 3)}" if kind == self._LEFT_OUT[0] else ""
        return f"{self.counts[kind]:,} {kind}{classes} (in {names})"
