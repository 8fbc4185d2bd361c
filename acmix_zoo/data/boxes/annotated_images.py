"""`AnnotatedImages`: the images of one split with their boxes, and `BoxSource`, a data set of such splits."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import numpy as np
from PIL import Image

from acmix_zoo.data.boxes.objects import BoxCheck, Objects
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images


class AnnotatedImages(Images):
    """Images of one split, each with any number of objects.

    Args:
        images: the images. Their classes are not used.
        objects: the usable objects of each image.
    """

    def __init__(self, images: Images, objects: Sequence[Objects]) -> None:
        self.images, self.objects = images, objects
        self.targets = np.zeros(len(objects), np.int64)

    def image(self, index: int) -> Image.Image:
        return self.images.image(index)

    def describe(self, index: int) -> str:
        return self.images.describe(index)

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        return self.images.inspect(indices, thorough)


class BoxSource(IndexedSource):
    """A data set of images with boxes. `load` returns an `AnnotatedImages` for each split that exists.

    Attributes:
        category_ids: the number of each class in the annotation files, for predictions in COCO's format.
        check: counts the boxes that cannot be used, once the splits have been loaded.
    """

    category_ids: tuple[int, ...]
    check: BoxCheck

    def fingerprint(self) -> str:
        """Return a hash of all boxes, class names and image names."""
        digest = hashlib.sha256(repr(self.class_names).encode())
        for name, images in sorted(self.splits.items()):
            assert isinstance(images, AnnotatedImages)
            digest.update(f"{name} {len(images)}".encode())
            for objects in images.objects:
                digest.update(objects.boxes.tobytes() + objects.classes.tobytes() + objects.is_crowd.tobytes())
        return digest.hexdigest()[:16]
