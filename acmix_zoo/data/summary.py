"""Summarise a data set before a run: splits, classes, images per class, skipped files and pixel values."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from acmix_zoo.data.depth import DARK
from acmix_zoo.data.images import Inspection
from acmix_zoo.data.option_checks import unreadable
from acmix_zoo.data.overlap import shared_images
from acmix_zoo.data.sources.base import Images, Source, counted, first_few
from acmix_zoo.data.splits import stratified

Parts = dict[str, tuple[Images, np.ndarray]]
_TABLE_CLASSES = 20  # data sets with more classes get a summary instead of a table


def split_parts(source: Source, val_fraction: float, seed: int) -> Parts:
    """Return the images of each existing split ("train", "val", "test") and the indices of those that belong to it.

    Args:
        val_fraction: fraction of each class used for validation if the source has no validation split; 0 for none.
        seed: seed for choosing the validation images.
    """
    splits = source.splits()
    parts = {name: (images, np.arange(len(images))) for name, images in splits.items()}
    if "val" not in parts and val_fraction > 0:
        images = splits["train"]
        train, val = stratified(images.targets, val_fraction, seed)
        parts["train"], parts["val"] = (images, train), (images, val)
    return parts


def summarize(source: Source, parts: Parts, inspections: Mapping[str, Inspection]) -> str:
    """Return the summary of a data set that is printed at the start of a run and by `acmix-zoo data`.

    Args:
        parts: the images of each split, from `split_parts`.
        inspections: the results of inspecting the files, for each split that was inspected.
    """
    names = source.class_names
    splits: list[str] = [split for split in ("train", "val", "test") if split in parts]
    counts = {split: _class_counts(*parts[split], len(names)) for split in splits}
    sizes = ", ".join(f"{split} {counts[split].sum():,}" for split in splits)
    lines = [f"data: {source.name}, {len(names)} classes; images: {sizes}"]
    if "val" not in source.splits() and "val" in parts:
        lines.append("  val was split off from train (data.val_fraction), because there is no validation split")
    if len(names) <= _TABLE_CLASSES:
        width = max(map(len, ("class", *names)))
        lines.append("  " + "class".ljust(width) + "".join(f"{split:>9}" for split in splits))
        for number, name in enumerate(names):
            row = "".join(f"{counts[split][number]:>9,}" for split in splits)
            lines.append("  " + name.ljust(width) + row)
    else:
        for split in splits:
            low, middle, high = (int(f(counts[split])) for f in (np.min, np.median, np.max))
            spread = f"{low:,} to {high:,} images per class, median {middle:,}"
            lines.append(f"  {split}: {spread if low < high else counted(low, 'image') + ' per class'}")
    remarks = [*_missing_classes(source, counts), *_imbalance(counts["train"], names), *shared_images(parts)]
    lines += [f"  {remark}" for remark in [*remarks, *source.remarks]]
    lines += [f"  {line}" for line in _pixel_values(inspections)]
    lines += [f"  {unreadable(s, found)}" for s, found in inspections.items() if found.problems]
    return "\n".join(lines)


def _class_counts(images: Images, indices: np.ndarray, classes: int) -> np.ndarray:
    targets = images.targets[indices]
    return np.bincount(targets[targets >= 0], minlength=classes)


def _missing_classes(source: Source, counts: Mapping[str, np.ndarray]) -> list[str]:
    """Return one line for each split that lacks images of some classes."""
    lines = []
    for split, of_split in counts.items():
        missing = [name for name, count in zip(source.class_names, of_split, strict=True) if not count]
        if not missing:
            continue
        what = f"the class {missing[0]}" if len(missing) == 1 else f"the classes {first_few(missing)}"
        is_cut = split == "val" and split not in source.splits()
        reason = ". A class with a single image keeps it for training; add images to have it validated"
        lines.append(f"{split} has no image of {what}{reason if is_cut else ''}")
    return lines


def _imbalance(counts: np.ndarray, names: tuple[str, ...]) -> list[str]:
    low, high = int(counts.argmin()), int(counts.argmax())
    if counts[high] < 3 * max(1, counts[low]):
        return []
    ratio = f"{counts[high]:,} of {names[high]!r}, {counts[low]:,} of {names[low]!r}"
    return [f"the training classes are imbalanced: {ratio}. Top-1 accuracy counts images, not classes"]


def _pixel_values(inspections: Mapping[str, Inspection]) -> list[str]:
    count = sum(found.count for found in inspections.values())
    depths: dict[int, int] = {}
    for found in inspections.values():
        for bits, images in found.depths.items():
            depths[bits] = depths.get(bits, 0) + images
    if not count:
        return []
    if not depths:
        return ["pixel values: 8 bits, 0 to 255"]
    lines = [
        f"pixel values: {images:,} of {count:,} images have {bits} bits; black to white is 0 to {2**bits - 1:,}"
        for bits, images in sorted(depths.items())
    ]
    if dark := sum(found.dark for found in inspections.values()):
        which = f"Warning: {counted(dark, 'image')}"
        lines.append(DARK.format(which=which, bits="/".join(map(str, sorted(depths)))))
    return lines
