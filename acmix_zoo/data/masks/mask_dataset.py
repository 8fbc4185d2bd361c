"""`MaskDataset`: images with masks as a PyTorch dataset that returns whole batches, and their loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from acmix_zoo.data.augment import preserve_random_state
from acmix_zoo.data.duplicates import duplicate_warnings
from acmix_zoo.data.example_dataset import ExampleDataset, Numbered
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.masks.mask_augment import MaskAugment
from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_images import MaskImages, Pair
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images
from acmix_zoo.data.splits import Split, is_val_split_off, unreadable_message
from acmix_zoo.data.summary import pixel_values
from acmix_zoo.data.wording import count_noun, first_few

_BLANK_SIDE = 64  # pixels
_TABLE_CLASSES = 30  # a data set with more classes gets no table


class MaskBatch(NamedTuple):
    """A batch. Images and masks of different sizes are padded at the right and at the bottom.

    Attributes:
        images: (B, 3, H, W) uint8; float32 after normalisation.
        masks: (B, h, w) uint8, the class of each pixel, or `VOID`.
        sizes: (B, 4) int64, height and width of each image and of its mask, before padding.
        indices: (B,) int64, the position of each image in the split; -1 for a padding image, whose mask is `VOID`.
    """

    images: Tensor
    masks: Tensor
    sizes: Tensor
    indices: Tensor


class MaskDataset(ExampleDataset[tuple[Tensor, Tensor]]):
    """Dataset of images with masks, see `ExampleDataset`.

    Args:
        split: `MaskImages`, or images without masks for prediction, and the indices of those that belong to the
            dataset.
        augment: augmentation of images and masks.
    """

    augment: MaskAugment

    def read_example(self, index: int, key: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.images, MaskImages):
            pair = self.images.pair(index)
        else:
            image = self.images.image(index)
            pair = Pair(image, np.zeros(image.size[::-1], np.uint8))
        with preserve_random_state():
            return self.augment(pair, key)

    def __getitems__(self, indices: Sequence[int]) -> MaskBatch:  # type: ignore[override]
        """Return the batch with these indices.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        examples, fill = self.read_examples(indices), self.augment.fill
        for number, (_, mask) in examples:
            if number < 0:
                mask.fill_(VOID)
        if not examples:  # all processes need the same number of batches
            blank = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).expand(3, _BLANK_SIDE, _BLANK_SIDE)
            void = torch.full((_BLANK_SIDE, _BLANK_SIDE), VOID, dtype=torch.uint8)
            examples = [Numbered(-1, (blank, void))]
        batch = collate([content for _, content in examples], [number for number, _ in examples], fill)
        return batch if self.raw else batch._replace(images=self.augment.pixels.normalize(batch.images))


def collate(pairs: Sequence[tuple[Tensor, Tensor]], indices: Sequence[int], fill: Sequence[int]) -> MaskBatch:
    """Combine images (3, H, W) and masks (h, w) into a batch, and pad them to the largest size."""
    sizes = torch.tensor([[*image.shape[1:], *mask.shape] for image, mask in pairs])  # (B, 4)
    height, width, mask_height, mask_width = sizes.amax(0).tolist()
    images = torch.empty(len(pairs), 3, height, width, dtype=torch.uint8)
    images[:] = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
    for target, (image, _) in zip(images, pairs, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    masks = [
        pad(mask, (0, mask_width - mask.shape[1], 0, mask_height - mask.shape[0]), value=VOID) for _, mask in pairs
    ]
    return MaskBatch(images, torch.stack(masks), sizes, torch.tensor(indices))


class MaskLoaders(IndexedLoaders):
    """Loaders of images with masks."""

    dataset_class = MaskDataset

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        return summarize_masks(self.source, self.splits, inspections, is_brief)


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
    lines = [f"data: {source.name}, {len(class_names)} classes; images with masks: {sizes}"]
    if is_val_split_off(source, splits):
        lines.append("  val was split off from train (data.val_fraction)")
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
            lines.append(f"  {message}{hint}")
        if len(class_names) <= _TABLE_CLASSES:
            width = max(map(len, class_names))
            lines.append("  " + "class".ljust(width) + "  training pixels")
            lines += [
                f"  {label.ljust(width)}  {100 * share:.2f} %" for label, share in zip(class_names, shares, strict=True)
            ]
    files = {
        name: Split(split.images.images, split.indices)
        for name, split in ordered.items()
        if isinstance(split.images, MaskImages)
    }
    remarks = [*duplicate_warnings(files), *source.remarks, *pixel_values(inspections, is_brief)]
    lines += [f"  {remark}" for remark in remarks]
    lines += [f"  {unreadable_message(split, found)}" for split, found in inspections.items() if found.problems]
    return "\n".join(lines)


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
