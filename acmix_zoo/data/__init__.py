"""Labelled images as batches: data sources, transforms, samplers, and the data module that joins them.

- `ImageDataModule`: batches of labelled images for training and evaluation; importing it imports lightning
- `MaskDataModule`: the same for images with masks, for semantic segmentation
- `BoxDataModule`: the same for images with boxes, for detection and instance segmentation
- `open_source`: the images and labels of a folder, table, archive or data set
- `load_image`: one image file as an 8-bit RGB image; raises `UnreadableImage` if it cannot be read
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acmix_zoo.data.images import UnreadableImage, load_image
from acmix_zoo.data.sources.open import open_source

if TYPE_CHECKING:
    from acmix_zoo.data.boxes.box_module import BoxDataModule
    from acmix_zoo.data.masks.mask_module import MaskDataModule
    from acmix_zoo.data.module import ImageDataModule

__all__ = [
    "BoxDataModule",
    "ImageDataModule",
    "MaskDataModule",
    "UnreadableImage",
    "load_image",
    "open_source",
]


def __getattr__(name: str) -> Any:
    # lightning takes seconds to import, and classifying a single image should not wait for it
    if name == "ImageDataModule":
        from acmix_zoo.data.module import ImageDataModule

        return ImageDataModule
    if name == "MaskDataModule":
        from acmix_zoo.data.masks.mask_module import MaskDataModule

        return MaskDataModule
    if name == "BoxDataModule":
        from acmix_zoo.data.boxes.box_module import BoxDataModule

        return BoxDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
