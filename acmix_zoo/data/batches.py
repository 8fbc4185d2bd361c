"""Turn images into batches, skip unreadable ones, and set up the worker processes of a loader."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from acmix_zoo.data.augment import Augment, preserve_random_state
from acmix_zoo.data.images import UnreadableImage

Batch = tuple[Tensor, Tensor]
"""Images (B, 3, S, S) float32, or (B, C, S, S) uint8 to be normalised later, and classes (B,) int64."""


class UnreadableCounter:
    """Count unreadable images over all worker processes and epochs, with one warning each.

    Args:
        size: number of images; None if it is not known.
        limit: number of images that may be unreadable.
        numbers: exclusive upper bound of the numbers of images; by default, `size`.
    """

    def __init__(self, size: int | None, limit: int, numbers: int | None = None) -> None:
        # shared memory, because workers are processes
        self.is_unreadable = torch.zeros(numbers or max(1, size or 0), dtype=torch.uint8).share_memory_()
        self.size, self.limit = size, limit

    def add(self, number: int, error: UnreadableImage) -> None:
        """Count image `number` as unreadable.

        Raises:
            UnreadableImage: there are more than allowed, or no readable image is left.
        """
        is_new = not self.is_unreadable[number]
        self.is_unreadable[number] = 1
        count = int(self.is_unreadable.sum())
        if count > self.limit:
            excess = (
                f". {count} images are unreadable, and at most max_unreadable={self.limit} are skipped"
                if self.limit
                else ""
            )
            raise UnreadableImage(f"{error}{excess}. Repair or remove the file, and run the command again") from error
        if count == self.size:
            raise UnreadableImage(
                f"{error}. None of the {count} images can be read. Check that the disk is still connected"
            ) from error
        if is_new:
            warnings.warn(f"skipped: {error} ({count} of at most max_unreadable={self.limit})", stacklevel=2)


class ImageReader(NamedTuple):
    """An image to be read into a batch.

    Attributes:
        number: number of the image for `UnreadableCounter`.
        read: function that returns the image.
    """

    number: int
    read: Callable[[], Image.Image]


def read_batch(
    readers: Iterable[ImageReader], keys: np.ndarray, augment: Augment, unreadable: UnreadableCounter
) -> tuple[Tensor, np.ndarray]:
    """Read images into a batch, and skip unreadable ones.

    Args:
        readers: (N,) images to read.
        keys: (N,) uint64, the keys of their augmentation.
        unreadable: counts unreadable images.

    Returns:
        Images (B, C, S, S) uint8 for `Pixels.normalize`, and the indices (B,) of the readers that succeeded. B may be
        0.

    Raises:
        UnreadableImage: too many images cannot be read.
    """
    pixels: list[np.ndarray] = []
    succeeded: list[int] = []
    with preserve_random_state():
        for index, reader in enumerate(readers):
            try:
                image = reader.read()
            except UnreadableImage as error:
                unreadable.add(reader.number, error)
                continue
            pixels.append(augment.image(image, int(keys[index])))
            succeeded.append(index)
        if not succeeded:
            return blank_batch(augment, raw=True)[0][:0], np.zeros(0, np.int64)
        return augment.batch(np.stack(pixels), keys[succeeded]), np.asarray(succeeded)


def blank_batch(augment: Augment, raw: bool) -> Batch:
    """Return a batch with one black image (1, 3, S, S) of class -1, which is computed but not counted.

    It replaces an evaluation batch without a readable image, so that all processes have the same number of batches. A
    model that is sharded over processes needs all of them in every step.
    """
    size = augment.pixels.image_size
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    return images if raw else augment.pixels.normalize(images), torch.tensor([-1])


def detach_worker(worker: int) -> None:
    """Move a worker into a process group of its own. Use as the `worker_init_fn` of a loader.

    A signal to the group of the run then only reaches the run, which needs its workers until it has saved a checkpoint.
    """
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def keep_batch(batch: Any) -> Any:
    """Return the batch unchanged. Use as the collate function of a loader whose dataset makes whole batches."""
    return batch
