"""`MaskImages`: images with a mask each, in files or in a table, and `MaskSource`, a data set of such splits."""

from __future__ import annotations

import io
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from typing import NamedTuple

import numpy as np
from PIL import Image

from acmix_zoo.data.formats import open_formats
from acmix_zoo.data.images import UnreadableImage, upright
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.masks.mask_classes import VOID, MaskClasses
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import CHECK_LIMIT, FileImages, Images
from acmix_zoo.data.sources.table_images import TableImages


class Pair(NamedTuple):
    """An image and its mask.

    Attributes:
        image: 8-bit RGB.
        mask: (H, W) uint8, the class of each pixel, or `VOID`.
    """

    image: Image.Image
    mask: np.ndarray


_SAMPLED = 100  # masks read to find out whether a split has any labels


class MaskImages(Images):
    """Images of one split, each with a mask of the same size.

    Args:
        images: the images, in files or in a table.
        masks: the path of each mask, or the masks in the same table.
        classes: how masks encode classes.
    """

    def __init__(
        self, images: FileImages | TableImages, masks: Sequence[str] | TableImages, classes: MaskClasses
    ) -> None:
        self.images, self.masks, self.classes = images, masks, classes
        self.targets = np.zeros(len(images), np.int64)  # an image has no class of its own

    def image(self, index: int) -> Image.Image:
        return self.images.image(index)

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def mask(self, index: int) -> np.ndarray:
        """Return the class of each pixel, (H, W) uint8.

        Raises:
            UnreadableImage: the mask cannot be read or has an unknown value.
        """
        name = self.masks.describe(index) if isinstance(self.masks, TableImages) else self.masks[index]
        try:
            source = self.masks.encoded_image(index) if isinstance(self.masks, TableImages) else name
            with _open(source) as file:
                file.load()
                mask = upright(file).copy()
        except Exception as error:  # broken bytes raise almost any exception
            if isinstance(error, MemoryError):
                raise
            raise UnreadableImage(f"mask {name} cannot be read: {error or type(error).__name__}") from error
        return self.classes.decode(mask, name)

    def has_labels(self) -> bool:
        """Return whether any pixel of up to 100 masks, taken at even distances, has a class.

        It is assumed if there are no masks, or if one of them cannot be read, which `inspect` reports.
        """
        sample = np.unique(np.linspace(0, len(self) - 1, min(len(self), _SAMPLED)).round().astype(int))
        try:
            return not len(self) or any((self.mask(int(index)) != VOID).any() for index in sample)
        except UnreadableImage:
            return True

    def pair(self, index: int) -> Pair:
        """Return an image and its mask.

        Raises:
            UnreadableImage: one of them cannot be read, their sizes differ, or the mask has an unknown value.
        """
        image, mask = self.image(index), self.mask(index)
        if image.size != mask.shape[::-1]:
            raise UnreadableImage(self._size_problem(index, image.size, mask))
        return Pair(image, mask)

    def _size_problem(self, index: int, size: tuple[int, int], mask: np.ndarray) -> str:
        return (
            f"mask of {self.describe(index)} has {mask.shape[1]} × {mask.shape[0]} pixels, but the image has "
            f"{size[0]} × {size[1]}"
        )

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Check all images and decode all masks: both must be readable, of the same size, and of known classes."""
        found = self.images.inspect(indices, thorough)
        if len(indices) > CHECK_LIMIT:
            return found
        found.class_pixels = np.zeros(len(self.classes.names) + 1, np.int64)
        with ThreadPoolExecutor(max_workers=8) as pool:  # decoding and disk access release the GIL
            for index, (problem, counts) in zip(indices, pool.map(self._inspect_mask, indices), strict=True):
                found.class_pixels += counts
                if problem and self.describe(index) not in found.unreadable:  # count a pair once
                    found.problems.append(problem)
        found.count = len(indices)
        return found

    def _inspect_mask(self, index: int) -> tuple[str, np.ndarray]:
        """Return what is wrong with a mask ("" if nothing is), and its `class_pixels` (see `Inspection`)."""
        class_count = len(self.classes.names)
        counts = np.zeros(class_count + 1, np.int64)
        try:
            mask = self.mask(index)
        except UnreadableImage as error:
            return str(error), counts
        size = self.images.header_size(index)
        if size is not None and size != mask.shape[::-1]:
            return self._size_problem(index, size, mask), counts
        return "", np.bincount(np.minimum(mask, class_count).ravel(), minlength=len(counts))


class MaskSource(IndexedSource):
    """A data set of images with masks. `load` returns a `MaskImages` for each split that exists.

    Attributes:
        classes: how masks encode classes.
    """

    classes: MaskClasses
    _empty: Sequence[str] = ()

    @cached_property
    def splits(self) -> dict[str, Images]:
        """The result of `load`, without validation and test splits whose masks were published without classes."""
        loaded = self.load()
        self._empty = [
            name
            for name, images in loaded.items()
            if name != "train" and isinstance(images, MaskImages) and not images.has_labels()
        ]
        remarks = [
            f"{name} is not used, because no pixel of its masks has a class"
            + f" ({_SAMPLED} of {len(loaded[name]):,} were read)" * (len(loaded[name]) > _SAMPLED)
            for name in self._empty
        ]
        self.remarks = [*self.remarks, *remarks]
        return {name: images for name, images in loaded.items() if name not in self._empty}

    def missing_split_advice(self, split: str) -> str:
        if split in self._empty:
            return f"No pixel of its {split} masks has a class. Add masks with classes"
        return super().missing_split_advice(split)


def _open(source: str | bytes) -> Image.Image:
    """Open an image file, or its bytes, without decoding it."""
    return Image.open(io.BytesIO(source) if isinstance(source, bytes) else source, formats=open_formats())
