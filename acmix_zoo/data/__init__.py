"""Labelled images as batches: data sources, transforms, samplers and the `ImageDataModule` that joins them.

`load_image` and `export_folder` need neither lightning nor datasets. `ImageDataModule` imports lightning when it is
used.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from acmix_zoo.data.export_folder import export_folder
from acmix_zoo.data.images import UnreadableImage, load_image
from acmix_zoo.data.sources.open import open_source

if TYPE_CHECKING:
    from acmix_zoo.data.module import ImageDataModule

__all__ = ["ImageDataModule", "UnreadableImage", "export_folder", "load_image", "open_source"]


def __getattr__(name: str) -> Any:
    # lightning takes seconds to import, and classifying a single image should not wait for it
    if name == "ImageDataModule":
        from acmix_zoo.data.module import ImageDataModule

        return ImageDataModule
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
