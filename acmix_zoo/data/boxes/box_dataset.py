"""`BoxDataset`: images with boxes as a PyTorch dataset that returns whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from acmix_zoo.data.augment import image_keys
from acmix_zoo.data.batches import UnreadableCounter
from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.box_augment import BoxAugment, Target, trainable_target
from acmix_zoo.data.boxes.objects import make_objects
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.splits import Split

_BLANK_SIDE = 32  # pixels


class BoxBatch(NamedTuple):
    """Images of one step.

    Attributes:
        images: B images (3, H, W) of different sizes, uint8 or float.
        targets: the target of each image. In evaluation, `image` (), int64, is its number in the split, or -1 if it
            must not be counted.
    """

    images: list[Tensor]
    targets: list[Target]


class BoxDataset(Dataset[BoxBatch]):
    """Dataset of N images with boxes. Loaders get batches from `__getitems__`.

    Index N + i means image i with a different augmentation. Index -1 - i means image i, which is not counted.

    Args:
        split: `AnnotatedImages`, and the indices of those that belong to the dataset.
        augment: size and augmentation.
        seed: seed of the augmentation. It depends only on (seed, epoch, index), not on the process.
        max_unreadable: number of unreadable images to skip, each with one warning. One more is an error.
        training: leave out crowds. If no image of a batch is readable, return the next images of the dataset.
    """

    def __init__(
        self,
        split: Split,
        augment: BoxAugment,
        *,
        seed: int = 0,
        max_unreadable: int = 0,
        training: bool = False,
    ) -> None:
        self.images, self.indices = split
        self.augment, self.seed, self.training = augment, seed, training
        self._epoch = torch.zeros(1, dtype=torch.int64).share_memory_()  # workers outlive an epoch
        self.unreadable = UnreadableCounter(split.size, max_unreadable)

    def __len__(self) -> int:
        return len(self.indices)

    @property
    def epoch(self) -> int:
        """The epoch, shared by all worker processes. `TrainSampler` sets it."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, epoch: int) -> None:
        self._epoch.fill_(epoch)

    def __getitem__(self, index: int) -> BoxBatch:
        return self.__getitems__([index])

    def __getitems__(self, indices: Sequence[int]) -> BoxBatch:
        """Return the batch with these indices.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        requested = np.asarray(indices)
        keys = image_keys(self.seed, self.epoch, images=requested)
        positions = np.where(requested < 0, -1 - requested, requested % max(1, len(self)))
        numbers = np.where(requested < 0, -1, positions)
        batch = self._read(positions, numbers, keys)
        if self.training:
            while not batch.images:  # ends, because the counter raises if no readable image is left
                positions = (positions + 1) % len(self)
                batch = self._read(positions, positions, keys)
        elif not batch.images:  # all processes need the same number of batches
            blank = torch.zeros(3, _BLANK_SIDE, _BLANK_SIDE, dtype=torch.uint8)
            return BoxBatch([blank], [{"image": torch.tensor(-1)}])
        return batch

    def _read(self, positions: np.ndarray, numbers: np.ndarray, keys: np.ndarray) -> BoxBatch:
        batch = BoxBatch([], [])
        for position, number, key in zip(positions.tolist(), numbers.tolist(), keys.tolist(), strict=True):
            index = int(self.indices[position])
            try:
                image = self.images.image(index)
            except UnreadableImage as error:
                self.unreadable.add(position, error)
                continue
            images = self.images
            objects = images.objects[index] if isinstance(images, AnnotatedImages) else make_objects([], [])
            pixels, target = self.augment(image, objects, key)
            target = trainable_target(target) if self.training else {**target, "image": torch.tensor(number)}
            batch.images.append(pixels)
            batch.targets.append(target)
        return batch

    def names(self, indices: Sequence[int]) -> list[str]:
        """Return the names of images for messages, without those of unreadable ones."""
        positions = [index % len(self) for index in indices]
        is_unreadable = self.unreadable.is_unreadable
        return [self.images.describe(int(self.indices[p])) for p in positions if not is_unreadable[p]]
