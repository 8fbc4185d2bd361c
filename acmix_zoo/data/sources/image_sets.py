"""Labelled images of one split, held in memory (`ArrayImages`) or in files (`FileImages`)."""

from __future__ import annotations

import os
import unicodedata
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import numpy as np
from PIL import Image

from acmix_zoo.data.images import image_size, load_image
from acmix_zoo.data.inspection import Inspection, inspect_images

CHECK_LIMIT = 100_000
"""Files of larger splits are not checked before a run."""
DECODE_LIMIT = 20_000
"""Images of larger splits are not decoded to check them."""


class Images(ABC):
    """Images with indices and classes.

    Attributes:
        targets: (N,) int64, the class of each image; -1 if it is unknown.
    """

    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def image(self, index: int) -> Image.Image:
        """Return an image as 8-bit RGB.

        Raises:
            UnreadableImage: the image cannot be read.
        """

    def describe(self, index: int) -> str:
        """Return the name of an image for messages."""
        return f"image {index}"

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Find images that cannot be read or have more than 8 bits per sample. If `thorough`, decode every image."""
        return Inspection()


class ArrayImages(Images):
    """Images in memory.

    Args:
        array: (N, C, H, W) uint8, where C is 1 or 3.
        targets: (N,) int64.
    """

    def __init__(self, array: np.ndarray, targets: np.ndarray) -> None:
        self.array, self.targets = array, targets

    def image(self, index: int) -> Image.Image:
        pixels = self.array[index]  # (C, H, W)
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")


class FileImages(Images):
    """Images in files.

    Args:
        paths: the file of each image.
        targets: (N,) int64.
    """

    def __init__(self, paths: list[str], targets: np.ndarray) -> None:
        self.paths, self.targets = paths, targets

    def image(self, index: int) -> Image.Image:
        return load_image(self.paths[index])

    def describe(self, index: int) -> str:
        return self.paths[index]

    def header_size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image, or None if it cannot be read."""
        return image_size(self.paths[index])

    def fingerprint_parts(self) -> Iterator[bytes]:
        """Yield the name and the size of each file. Reading all files would take minutes."""
        for path in self.paths:
            size = os.path.getsize(path) if os.path.exists(path) else -1
            yield os.fsencode(unicodedata.normalize("NFC", f"{os.path.basename(path)}\0{size}\n"))

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        if len(indices) > CHECK_LIMIT:
            return Inspection()
        return inspect_images([self.paths[i] for i in indices], thorough and len(indices) <= DECODE_LIMIT)
