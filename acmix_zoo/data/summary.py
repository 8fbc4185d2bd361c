"""Summarise a data set before a run: splits, classes, images per class, skipped files and pixel values."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import numpy as np

from acmix_zoo.data.bit_depth import DARK_MESSAGE
from acmix_zoo.data.duplicates import duplicate_warnings
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.splits import Split, is_val_split_off, unreadable_message
from acmix_zoo.data.wording import count_noun, first_few

_TABLE_CLASSES = 20  # a data set with more classes gets a summary instead of a table


def summarize(
    source: IndexedSource, splits: Mapping[str, Split], inspections: Mapping[str, Inspection], is_brief: bool = False
) -> str:
    """Return the summary of a data set that is printed by `acmix-zoo data` and, in a brief form, at the start of a run.

    Args:
        splits: the splits, from `split_source`.
        inspections: the results of inspecting the files, for each split that was inspected.
        is_brief: whether to leave out the table of the classes, and pixel values that are as usual.
    """
    names = source.class_names
    ordered = [name for name in ("train", "val", "test") if name in splits]
    counts = {name: _class_counts(splits[name], len(names)) for name in ordered}
    sizes = ", ".join(f"{name} {count.sum():,}" for name, count in counts.items())
    lines = [f"data: {source.name}, {len(names)} classes; images: {sizes}"]
    lines += split_notes(source, splits)
    lines += _images_per_class(names, counts, most_rows=0 if is_brief else _TABLE_CLASSES)
    lines += [*_missing_classes(source, counts), *_imbalance(counts["train"], names)]
    return "\n  ".join([*lines, *file_notes(source, splits, inspections, is_brief)])


def split_notes(source: IndexedSource, splits: Mapping[str, Split]) -> list[str]:
    """Return lines about splits that are not those of the source."""
    lines = []
    if "test" in splits and "test" not in source.splits:
        lines.append("test is the validation split of the source (data.validation_as_test)")
    if is_val_split_off(source, splits):
        reason = "" if "val" in source.splits else ", because there is no usable validation split"
        lines.append(f"val was split off from train (data.val_fraction){reason}")
    return lines


def file_notes(
    source: IndexedSource, files: Mapping[str, Split], inspections: Mapping[str, Inspection], is_brief: bool
) -> list[str]:
    """Return the last lines of a summary: identical, skipped and unreadable files, and the values of pixels.

    Args:
        files: splits whose images are files, as far as they are.
        inspections: the results of inspecting the files, for each split that was inspected.
        is_brief: whether to leave out pixel values that are as usual.
    """
    unreadable = [unreadable_message(name, found) for name, found in inspections.items() if found.problems]
    return [*duplicate_warnings(files), *source.remarks, *_pixel_values(inspections, is_brief), *unreadable]


def _images_per_class(names: tuple[str, ...], counts: Mapping[str, np.ndarray], most_rows: int) -> list[str]:
    """Return a table of the images per class, or one line for each split if it would have too many rows."""
    if len(names) <= most_rows:
        width = max(map(len, ("class", *names)))
        lines = ["class".ljust(width) + "".join(f"{split:>9}" for split in counts)]
        for number, name in enumerate(names):
            lines.append(name.ljust(width) + "".join(f"{count[number]:>9,}" for count in counts.values()))
        return lines
    lines = []
    for split, count in counts.items():
        low, high = int(count.min()), int(count.max())
        spread = f"{low:,} to {high:,} images per class, median {int(np.median(count)):,}"
        lines.append(f"{split}: {spread if low < high else count_noun(low, 'image') + ' per class'}")
    return lines


def _class_counts(split: Split, classes: int) -> np.ndarray:
    """Return (classes,) integers: the number of images of each class."""
    targets = split.targets
    return np.bincount(targets[targets >= 0], minlength=classes)


def _missing_classes(source: IndexedSource, counts: Mapping[str, np.ndarray]) -> list[str]:
    """Return one line for each split that lacks images of some classes."""
    lines = []
    for split, class_counts in counts.items():
        missing = [name for name, count in zip(source.class_names, class_counts, strict=True) if not count]
        if not missing:
            continue
        what = f"the class {missing[0]}" if len(missing) == 1 else f"the classes {first_few(missing)}"
        is_split_off = split == "val" and split not in source.splits
        reason = ". The only image of a class is used for training. Add images to validate the class"
        lines.append(f"{split} has no image of {what}{reason if is_split_off else ''}")
    return lines


def _imbalance(counts: np.ndarray, names: tuple[str, ...]) -> list[str]:
    """Return a line if the largest training class has at least three times as many images as the smallest."""
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[high] < 3 * max(1, counts[low]):
        return []
    ratio = f"{counts[high]:,} of {names[high]!r}, {counts[low]:,} of {names[low]!r}"
    return [f"the training classes are imbalanced: {ratio}. Top-1 accuracy counts images, not classes"]


def _pixel_values(inspections: Mapping[str, Inspection], is_brief: bool) -> list[str]:
    """Return lines about the bits per sample of the inspected images; if `is_brief`, only about more than 8."""
    count = sum(found.count for found in inspections.values())
    depths = sum((found.depths for found in inspections.values()), Counter[int]())
    if not depths:
        return [] if is_brief or not count else ["pixel values: 8 bits, 0 to 255"]
    lines = [
        f"pixel values: {images:,} of {count:,} images have {bits} bits; black to white is 0 to {2**bits - 1:,}"
        for bits, images in sorted(depths.items())
    ]
    if dark := sum(found.dark for found in inspections.values()):
        which = f"Warning: {count_noun(dark, 'image')}"
        lines.append(DARK_MESSAGE.format(which=which, bits="/".join(map(str, sorted(depths)))))
    return lines
