"""Summarise a data set with masks before a run: splits, pixels of each class, and what was skipped."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_images import MaskImages
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images
from acmix_zoo.data.splits import Split, is_val_split_off
from acmix_zoo.data.summary import file_notes, split_notes
from acmix_zoo.data.wording import count_noun, first_few

_TABLE_CLASSES = 30  # a data set with more classes gets no table


def summarize_masks(
    source: IndexedSource, splits: Mapping[str, Split], inspections: Mapping[str, Inspection], is_brief: bool = False
) -> str:
    """Return the summary that is printed at the start of a run: splits, pixels per class, and what was skipped.

    Args:
        source: the source of images and masks.
        splits: the splits, from `split_source`.
        inspections: the results of inspecting the files, for each split that was inspected.
        is_brief: whether to omit the line about pixel values if all images have 8 bits.

    Raises:
        ValueError: the training masks contain at most one class, because pixels of another one are ignored; or the
            validation masks that were split off contain no class.
    """
    class_names = source.class_names
    ordered = {split: splits[split] for split in ("train", "val", "test") if split in splits}
    sizes = ", ".join(f"{name} {split.size:,}" for name, split in ordered.items())
    lines = [f"data: {source.name}, {count_noun(len(class_names), 'class')}; images with masks: {sizes}"]
    lines += split_notes(source, splits)
    if is_val_split_off(source, splits):
        _check_labelled(source.name, splits["val"].size, inspections.get("val"))
    counts = inspections["train"].class_pixels if "train" in inspections else None
    if counts is not None and counts.any():
        pixels, total = counts[:-1], max(1, int(counts[:-1].sum()))
        shares = pixels / total
        if absent := [label for label, share in zip(class_names, shares, strict=True) if not share]:
            message = f"no training mask contains {first_few(absent)}"
            hint = _ignored_class_hint(splits["train"].images, absent, float(counts[-1] / counts.sum()))
            if hint and len(absent) >= len(class_names) - 1 and not inspections["train"].problems:
                raise ValueError(f"{source.name}: {message}{hint}")
            lines.append(f"{message}{hint}")
        if len(class_names) <= _TABLE_CLASSES:
            width = max(map(len, class_names))
            lines.append("class".ljust(width) + "  training pixels")
            lines += [
                f"{label.ljust(width)}  {100 * share:.2f} %" for label, share in zip(class_names, shares, strict=True)
            ]
    files = {
        name: Split(split.images.images, split.indices)
        for name, split in ordered.items()
        if isinstance(split.images, MaskImages)
    }
    return "\n  ".join([*lines, *file_notes(source, files, inspections, is_brief)])


def _check_labelled(name: str, count: int, found: Inspection | None) -> None:
    """Check that the validation masks that were split off have a pixel with a class, as far as they were inspected.

    Args:
        name: name of the data set.
        count: number of these masks.
        found: the result of inspecting them.
    """
    if found is None or found.problems or found.class_pixels is None or found.class_pixels[:-1].any():
        return
    raise ValueError(
        f"{name}: no pixel of the {count_noun(count, 'validation mask')} split off from train has a class, so "
        "no epoch would have a score. Set --data.seed to another number or --data.val_fraction higher, or add a "
        "validation split"
    )


def _ignored_class_hint(images: Images, absent: Sequence[str], ignored: float) -> str:
    """Return what to do if 255 stands for a class in masks, or "" if no pixel of this value can have been ignored.

    Args:
        images: the training images.
        absent: the classes that no training mask contains.
        ignored: the fraction of pixels without a class.
    """
    classes = images.classes if isinstance(images, MaskImages) else None
    if classes is None or not ignored or classes.ignore_values != (VOID,) or classes.ignore_colours:
        return ""
    other = next(name for name in classes.names if name != absent[-1])
    examples = [" ".join([str(value)] * 3) for value in (classes.first_value, VOID)]
    return (
        f", but {100 * ignored:.2f} % of the pixels have the value {VOID}, which stands for no class. If it is a class "
        f"here, write the grey value of each class into classes.txt, such as '{examples[0]} {other}' and "
        f"'{examples[1]} {absent[-1]}'"
    )
