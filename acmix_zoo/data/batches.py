"""Batches of tensors from pictures by their numbers."""

from __future__ import annotations

import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from acmix_zoo.data.augment import Augment, image_keys, kept_random_state
from acmix_zoo.data.images import BadImage
from acmix_zoo.data.sources.base import ArrayImages, Images

Batch = tuple[Tensor, Tensor]


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """`dataset[i]` is an image (3, S, S) and its class; the loader asks for whole batches through `__getitems__`.

    An index of N + i, of N images, is image i once more, otherwise augmented; an index of -1 - i is image i with class
    -1, which counts for nothing.

    Args:
        images: the pictures; `indices` says which of them belong here.
        augment: size, normalisation, augmentation.
        seed: an image's random numbers are given by (seed, epoch, index), whoever loads it.
        max_bad: so many unreadable pictures are left out of their batches, each with one warning; one more is an error.
        training: a batch of which nothing can be read is made of the pictures behind its own; else it is `blank`.
        with_index: give the index in place of the class.
        raw: keep the images as uint8, which takes a quarter of the memory. They have to be normalised later with
            `Pixels.normalize`.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        augment: Augment,
        *,
        seed: int = 0,
        max_bad: int = 0,
        training: bool = False,
        with_index: bool = False,
        raw: bool = False,
    ) -> None:
        self.images, self.indices, self.augment, self.seed = images, indices, augment, seed
        self.training, self.raw = training, raw
        self.targets = np.arange(len(indices)) if with_index else images.targets[indices]
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers outlive an epoch
        self.bad = BadImages(len(indices), max_bad)
        # in memory at the right size: nothing to do for a single picture
        size = augment.pixels.image_size
        self.array: np.ndarray | None = None
        if (
            augment.plain
            and isinstance(images, ArrayImages)
            and images.array.shape[2:] == (size, size)
            and augment.pixels.crop_pct == 1
        ):
            self.array = images.array

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def epoch(self) -> int:
        """The epoch, shared by all worker processes; `EpochSampler` sets it."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, targets = self.__getitems__([index])
        return images[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images (B, 3, S, S) float32, or (B, C, S, S) uint8 with `raw`, and classes (B,) int64.

        Raises:
            BadImage: more unreadable pictures than allowed, or none of all can be read.
        """
        given = np.asarray(indices)
        keys = image_keys(self.seed, self.epoch, images=given)
        places = np.where(given < 0, -1 - given, given % max(1, len(self)))
        targets = np.where(given < 0, -1, self.targets[places])
        if self.array is not None:
            with kept_random_state():
                images = self.augment.batch(self.array[self.indices[places]], keys)
            return self._finished(images, targets)
        images, kept = self._read(places, keys)
        if len(kept):
            return self._finished(images, targets[kept])
        if not self.training:
            return blank(self.augment, self.raw)
        while not len(kept):  # ends: `bad` raises when there is none left
            places = (places + 1) % len(self)
            images, kept = self._read(places, keys)
        return self._finished(images, self.targets[places[kept]])

    def _finished(self, images: Tensor, targets: np.ndarray) -> Batch:
        return images if self.raw else self.augment.pixels.normalize(images), torch.from_numpy(targets)

    def _read(self, places: np.ndarray, keys: np.ndarray) -> tuple[Tensor, np.ndarray]:
        readers = ((int(place), lambda place=place: self.images.image(int(self.indices[place]))) for place in places)
        return read_batch(readers, keys, self.augment, self.bad)

    def names(self, indices: Sequence[int]) -> list[str]:
        """What to call pictures when talking to people, path or place in a table; those that could not be read left
        out."""
        places = [index % len(self) for index in indices]
        return [self.images.describe(int(self.indices[place])) for place in places if not self.bad.seen[place]]


class BadImages:
    """What cannot be read: left out with one warning each, in all worker processes and epochs of a run together.

    Args:
        size: how many pictures there are. limit: how many of them may be bad.
    """

    def __init__(self, size: int, limit: int) -> None:
        # shared memory: workers are processes
        self.seen = torch.zeros(max(1, size), dtype=torch.uint8).share_memory_()
        self.limit = limit

    def add(self, number: int, error: BadImage) -> None:
        """Count picture `number`.

        Raises:
            BadImage: there are too many, or no others.
        """
        new = not self.seen[number]
        self.seen[number] = 1
        count = int(self.seen.sum())
        if count > self.limit:
            more = f"; it is number {count}, and at most max_bad={self.limit} are left out" if self.limit else ""
            raise BadImage(f"{error}{more}; repair or remove it and run the command again") from error
        if count == len(self.seen):
            raise BadImage(f"{error}; none of the {count} images can be read; is the disk still there?") from error
        if new:
            warnings.warn(f"left out: {error} ({count} of at most max_bad={self.limit})", stacklevel=2)


def read_batch(
    readers: Iterable[tuple[int, Callable[[], Image.Image]]], keys: np.ndarray, augment: Augment, bad: BadImages
) -> tuple[Tensor, np.ndarray]:
    """Read pictures into a batch. Returns images (B, C, S, S) uint8 for `Pixels.normalize`, and the indices (B,) of the
    readers that succeeded; B may be 0.

    Args:
        readers: for each picture its number in `bad`, and what reads it.
        keys: (readers,) uint64, for the augmentation.

    Raises:
        BadImage: too many cannot be read.
    """
    pixels: list[np.ndarray] = []
    kept: list[int] = []
    with kept_random_state():
        for place, (number, read) in enumerate(readers):
            try:
                picture = read()
            except BadImage as error:
                bad.add(number, error)
                continue
            pixels.append(augment.picture(picture, int(keys[place])))
            kept.append(place)
        if not kept:
            return blank(augment, raw=True)[0][:0], np.zeros(0, np.int64)
        return augment.batch(np.stack(pixels), keys[kept]), np.asarray(kept)


def blank(augment: Augment, raw: bool) -> Batch:
    """An image (1, 3, S, S) of class -1, which is computed and not counted: for an evaluation in which nothing is left
    to count, while other processes may need this one in every step."""
    size = augment.pixels.image_size
    images = torch.zeros(1, 3, size, size, dtype=torch.uint8)
    return images if raw else augment.pixels.normalize(images), torch.tensor([-1])


def apart(worker: int) -> None:
    """The loader's worker_init_fn: a signal to the run's group of processes is for the run, which needs its workers
    until it has saved."""
    if hasattr(os, "setpgrp"):
        os.setpgrp()


def as_is(batch: Any) -> Any:
    """The loader's collate function: `__getitems__` already made a batch."""
    return batch
