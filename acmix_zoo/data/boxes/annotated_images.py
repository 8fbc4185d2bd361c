"""`AnnotatedImages`: the images of one split with their boxes, and `BoxSource`, a data set of such splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property

import numpy as np
from PIL import Image

from acmix_zoo.data.boxes.objects import BoxCheck, Objects
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import CHECK_LIMIT, FileImages, Images
from acmix_zoo.data.sources.table_images import TableImages

_NORMALISED = 2  # left + width is up to 2 if a box in fractions is stored as centre and size, or as corners


class AnnotatedImages(Images):
    """Images of one split, each with any number of objects.

    Args:
        images: the images. Their classes are not used.
        objects: the usable objects of each image.
        sizes: the (width, height) in pixels that the annotations refer to; None if it is not known.
    """

    def __init__(
        self, images: FileImages | TableImages, objects: Sequence[Objects], sizes: Sequence[tuple[int, int] | None]
    ) -> None:
        self.images, self.objects, self.sizes = images, objects, sizes
        # whether there are objects, so that validation images that are split off from train have some
        self.targets = np.array([not each.is_crowd.all() for each in objects], np.int64)

    def image(self, index: int) -> Image.Image:
        return self.images.image(index)

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Check the images, and whether files have the size that their annotations state."""
        found = self.images.inspect(indices, thorough)
        if isinstance(self.images, FileImages) and len(indices) <= CHECK_LIMIT:
            with ThreadPoolExecutor(max_workers=8) as pool:  # disk access releases the GIL
                found.problems += filter(None, pool.map(self._size_problem, indices))
        return found

    def _size_problem(self, index: int) -> str:
        """Return a message about a file of a different size than its annotations state, or ""."""
        assert isinstance(self.images, FileImages)
        stated, path = self.sizes[index], self.images.paths[index]
        actual = self.images.header_size(index) if stated else None
        if stated is None or actual is None or is_same_size(stated, actual):
            return ""
        problem = f"image {path} has {actual[0]} × {actual[1]} pixels, but its annotations state "
        problem += f"{stated[0]} × {stated[1]}"
        if is_same_size(stated, actual[::-1]):
            return (
                f"{problem}. Width and height are swapped, as in a photograph that its EXIF orientation turns. "
                "Expected boxes in the turned image. Turn them or remove the orientation, or correct the stated size"
            )
        return f"{problem}. Expected boxes in pixels of the file. Scale the boxes, or correct the stated size"


def is_same_size(stated: tuple[int, int], actual: tuple[int, int]) -> bool:
    """Return whether two sizes are the same, except that tools may round differently."""
    return max(abs(stated[0] - actual[0]), abs(stated[1] - actual[1])) <= 1


def known_sizes(
    stated: Sequence[tuple[int, int] | None], images: FileImages | TableImages, are_required: bool
) -> list[tuple[int, int] | None]:
    """Return the (width, height) of each image that its annotations state, or else its file.

    If many annotations state none, the files are only read if the sizes are required, because this takes minutes. The
    size of an unreadable image is None.
    """
    sizes = list(stated)
    unknown = [i for i, size in enumerate(stated) if size is None]
    if len(unknown) <= CHECK_LIMIT or are_required:
        with ThreadPoolExecutor(max_workers=8) as pool:  # disk access releases the GIL
            for i, size in zip(unknown, pool.map(images.header_size, unknown), strict=True):
                sizes[i] = size
    return sizes


class BoxSource(IndexedSource):
    """A data set of images with boxes. `load` returns an `AnnotatedImages` for each split that exists.

    Attributes:
        category_ids: the number of each class in the annotations, for predictions in COCO's format; from 1 if they
            have only names.
        check: counts the boxes that cannot be used, once the splits have been loaded.
        split_advice: how to add a split, with {split} for its name.
    """

    category_ids: tuple[int, ...]
    check: BoxCheck
    split_advice = "Add a {split} split"
    _empty: Sequence[str] = ()

    @cached_property
    def splits(self) -> dict[str, Images]:
        """The result of `load`, without validation and test splits that were published without boxes.

        Raises:
            ValueError: the training images have no usable boxes, or their boxes are not in pixels.
        """
        loaded = self.load()
        empty = [name for name, images in loaded.items() if not images.targets.any()]
        train = loaded["train"]
        assert isinstance(train, AnnotatedImages)
        if "train" in empty:
            crowds = sum(len(objects.boxes) for objects in train.objects)
            reason = f"All boxes ({crowds:,}) are marked as crowd or difficult, and training leaves these out. Remove "
            reason += "the mark where it is wrong. "
            raise ValueError(
                f"{self.name}: the training images have no usable boxes. Expected some. {reason * bool(crowds)}"
                f"{self.check.summary()}. {self.check.advice()}".strip(" .")
            )
        if max(objects.boxes.max(initial=0) for objects in train.objects) <= _NORMALISED:
            raise ValueError(
                f"{self.name}: all training boxes lie between 0 and {_NORMALISED}, so they seem to be normalised, in "
                "fractions of the image. Expected pixels. Multiply them by the width and the height of their image"
            )
        self._empty = empty
        self.remarks = [*self.remarks, *(f"{name} is not used, because it has no usable boxes" for name in empty)]
        return {name: images for name, images in loaded.items() if name not in empty}

    def missing_split_advice(self, split: str) -> str:
        if split in self._empty:
            return f"Its {split} images have no usable boxes. Add boxes"
        return self.split_advice.format(split=split)

    def fingerprint(self) -> str:
        """Return a hash of the class names, all boxes and masks, and the names and sizes of the images."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, images in sorted(self.splits.items()):
            assert isinstance(images, AnnotatedImages)
            digest.update(f"{name} {len(images)}".encode())
            for objects in images.objects:
                digest.update(objects.boxes.tobytes() + objects.classes.tobytes() + objects.is_crowd.tobytes())
                masks = objects.masks and [(tuple(map(int, m["size"])), m["counts"]) for m in objects.masks]
                digest.update(repr(masks).encode())
            for part in images.images.fingerprint_parts():
                digest.update(part)
        return digest.hexdigest()[:16]
