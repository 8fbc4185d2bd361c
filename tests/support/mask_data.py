"""A small data set of images and masks, and the data module that reads it."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from support.tasks import write_masked_images

from acmix_zoo.data.masks.mask_module import MaskDataModule


def make_folder(root: Path) -> Path:
    """Write four images for training, two for validation and one for testing, each with a mask."""
    return write_masked_images(root / "shapes", (4, 2, 1), (12, 16))


def make_data(folder: Path, **kwargs: Any) -> MaskDataModule:
    return MaskDataModule(str(folder), **{"crop_size": (8, 8), "batch_size": 2, **kwargs})


def sizes(data: MaskDataModule) -> dict[str, int]:
    return data.loaders.sizes()
