"""`ImageDataset`: indexed images as a PyTorch dataset that returns whole batches."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from acmix_zoo.data.augment import Augment, image_keys, preserve_random_state
from acmix_zoo.data.batches import Batch, ImageReader, UnreadableCounter, blank_batch, read_batch
from acmix_zoo.data.sources.image_sets import ArrayImages
from acmix_zoo.data.splits import Split


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """Dataset of N images. `dataset[i]` is an image (3, S, S) and its class; loaders get batches from `__getitems__`.

    Index N + i means image i with a different augmentation. Index -1 - i means image i with class -1, which is computed
    but not counted.

    Args:
        split: images and the indices of those that belong to the dataset.
        augment: size, normalisation and augmentation.
        seed: seed of the augmentation. It depends only on (seed, epoch, index), not on the process.
        max_unreadable: number of unreadable images to skip, each with one warning. One more is an error.
        training: if no image of a batch is readable, return the next images of the dataset instead of a blank batch.
        with_index: return the index of an image in place of its class.
        raw: keep the images as uint8, which needs a quarter of the memory. `Pixels.normalize` has to be called later.
    """

    def __init__(
        self,
        split: Split,
        augment: Augment,
        *,
        seed: int = 0,
        max_unreadable: int = 0,
        training: bool = False,
        with_index: bool = False,
        raw: bool = False,
    ) -> None:
        self.images, self.indices = split
        self.augment, self.seed, self.training, self.raw = augment, seed, training, raw
        self.targets = np.arange(split.size) if with_index else split.targets
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers outlive an epoch
        self.unreadable = UnreadableCounter(split.size, max_unreadable)
        self.array = self._final_array()

    def _final_array(self) -> np.ndarray | None:
        """Return the images as one array if they are in memory and already have their final size."""
        size = self.augment.pixels.image_size
        is_unchanged = self.augment.is_batchwise and self.augment.pixels.crop_pct == 1
        if is_unchanged and isinstance(self.images, ArrayImages) and self.images.array.shape[2:] == (size, size):
            return self.images.array
        return None

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def epoch(self) -> int:
        """The epoch, shared by all worker processes. `TrainSampler` sets it."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, targets = self.__getitems__([index])
        return images[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Return the batch with these indices.

        Returns:
            Images (B, 3, S, S) float32, or (B, C, S, S) uint8 with `raw`, and classes (B,) int64.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        requested = np.asarray(indices)
        keys = image_keys(self.seed, self.epoch, images=requested)
        positions = np.where(requested < 0, -1 - requested, requested % max(1, len(self)))
        targets = np.where(requested < 0, -1, self.targets[positions])
        if self.array is not None:
            with preserve_random_state():
                images = self.augment.batch(self.array[self.indices[positions]], keys)
            return self._finish(images, targets)
        images, succeeded = self._read(positions, keys)
        if len(succeeded):
            return self._finish(images, targets[succeeded])
        if not self.training:
            return blank_batch(self.augment, self.raw)
        while not len(succeeded):  # ends, because the counter raises if no readable image is left
            positions = (positions + 1) % len(self)
            images, succeeded = self._read(positions, keys)
        return self._finish(images, self.targets[positions[succeeded]])

    def _finish(self, images: Tensor, targets: np.ndarray) -> Batch:
        return images if self.raw else self.augment.pixels.normalize(images), torch.from_numpy(targets)

    def _read(self, positions: np.ndarray, keys: np.ndarray) -> tuple[Tensor, np.ndarray]:
        numbers = self.indices[positions].tolist()
        readers = [
            ImageReader(position, lambda number=number: self.images.image(number))  # type: ignore[misc]
            for position, number in zip(positions.tolist(), numbers, strict=True)
        ]
        return read_batch(readers, keys, self.augment, self.unreadable)

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images for messages, without those of unreadable ones."""
        positions = [index % len(self) for index in indices]
        is_unreadable = self.unreadable.is_unreadable
        return [self.images.describe(int(self.indices[p])) for p in positions if not is_unreadable[p]]
