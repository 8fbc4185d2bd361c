"""Summarise a data set with boxes before a run: splits, boxes of each class, and what cannot be used."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages, BoxSource
from acmix_zoo.data.boxes.box_augment import scaled_size
from acmix_zoo.data.boxes.objects import Objects
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.splits import Split
from acmix_zoo.data.summary import file_notes, split_notes
from acmix_zoo.data.wording import count_noun, first_few

_TABLE_CLASSES = 20  # a data set with more classes gets no table


def summarize_boxes(
    source: IndexedSource,
    splits: Mapping[str, Split],
    inspections: Mapping[str, Inspection],
    evaluation_size: tuple[int, int] | None = None,
    is_brief: bool = False,
) -> str:
    """Return the summary of a data set with boxes that is printed at the start of a run.

    Args:
        source: a `BoxSource`.
        splits: the splits, from `split_source`.
        inspections: the results of inspecting the files, for each split that was inspected.
        evaluation_size: maximum lengths of the shorter and the longer side of a resized image, if they are known.
        is_brief: whether to omit the line about pixel values if all images have 8 bits.
    """
    names = source.class_names
    ordered = {name: splits[name] for name in ("train", "val", "test") if name in splits}
    counts = {name: _boxes_per_class(split, len(names)) for name, split in ordered.items()}
    images = ", ".join(f"{name} {split.size:,}" for name, split in ordered.items())
    boxes = ", ".join(f"{name} {count.sum():,}" for name, count in counts.items())
    lines = [f"data: {source.name}, {count_noun(len(names), 'class')}; images: {images}; boxes: {boxes}"]
    lines += split_notes(source, splits)
    if len(names) <= _TABLE_CLASSES:
        width = max(map(len, ("boxes of class", *names)))
        lines.append("boxes of class".ljust(width) + "".join(f"{split:>9}" for split in counts))
        for number, name in enumerate(names):
            lines.append(name.ljust(width) + "".join(f"{count[number]:>9,}" for count in counts.values()))
    check = source.check.summary() if isinstance(source, BoxSource) else ""
    missing = [name for name, count in zip(names, counts["train"], strict=True) if not count]
    files = {name: Split(_annotated(split).images, split.indices) for name, split in ordered.items()}
    remarks = [
        check,
        _tiny_boxes(ordered["train"], *evaluation_size) if evaluation_size else "",
        _crowds(ordered),
        _images_without_boxes(ordered),
        f"train has no box of {first_few(missing)}" if missing else "",
    ]
    lines += filter(None, remarks)
    return "\n  ".join([*lines, *file_notes(source, files, inspections, is_brief)])


def _boxes_per_class(split: Split, classes: int) -> np.ndarray:
    """Return (classes,) integers: the number of boxes of each class."""
    labels = [objects.classes for objects in _objects(split)]
    return np.bincount(np.concatenate([np.zeros(0, np.int64), *labels]), minlength=classes)  # labels may be empty


def _tiny_boxes(train: Split, side: int, max_size: int) -> str:
    """Return the number of boxes that training leaves out because resizing makes them too small, or ""."""
    images, counts = _annotated(train), {}
    for i in train.indices.tolist():
        if (stated := images.sizes[i]) is not None:
            width, height = stated
            resized = scaled_size(height, width, side, max_size)
            objects = images.objects[i]
            sides = (objects.boxes[:, 2:] - objects.boxes[:, :2]) * (resized[1] / width, resized[0] / height)
            counts[i] = int(((sides < 1).any(1) & ~objects.is_crowd).sum())
    found = [Path(images.describe(i)).name for i, count in counts.items() if count]
    return (
        f"train: {sum(counts.values()):,} of the boxes have a side below one pixel after resizing to data.image_size="
        f"{side}, and are left out (in {first_few(found, 3)})"
    ) * bool(found)


def _crowds(splits: Mapping[str, Split]) -> str:
    """Return the number of boxes in each split that training does not use, or "" if there are none."""
    counts = {name: sum(int(objects.is_crowd.sum()) for objects in _objects(split)) for name, split in splits.items()}
    found = [f"{name} {count:,}" for name, count in counts.items() if count]
    return f"boxes marked as crowd or difficult (training leaves them out): {', '.join(found)}" * bool(found)


def _images_without_boxes(splits: Mapping[str, Split]) -> str:
    """Return the number of images without boxes in each split, or "" if there are none."""
    counts = {name: sum(not len(objects.boxes) for objects in _objects(split)) for name, split in splits.items()}
    return "; ".join(f"{name} {count_noun(count, 'image')} without boxes" for name, count in counts.items() if count)


def _objects(split: Split) -> list[Objects]:
    objects = _annotated(split).objects
    return [objects[i] for i in split.indices]


def _annotated(split: Split) -> AnnotatedImages:
    assert isinstance(split.images, AnnotatedImages)
    return split.images
