"""`BoxDataset`: images with boxes as a PyTorch dataset that returns whole batches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from acmix_zoo.data.augment import image_keys
from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.box_augment import BoxAugment, Target, trainable_target
from acmix_zoo.data.boxes.objects import make_objects
from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.images import UnreadableImage

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


class BoxDataset(ImageDataset):
    """Dataset of images with boxes. Its arguments and indices are those of `ImageDataset`, except for `augment`.

    Args:
        split: `AnnotatedImages`, or images without annotations for prediction, and the indices of those that belong to
            the dataset.
        augment: size and augmentation.
    """

    augment: BoxAugment  # type: ignore[assignment]

    def _final_array(self) -> None:
        return None

    def __getitems__(self, indices: Sequence[int]) -> BoxBatch:  # type: ignore[override]
        """Return the batch with these indices. In training, crowds are left out.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        requested = np.asarray(indices)
        keys = image_keys(self.seed, self.epoch, images=requested)
        positions = np.where(requested < 0, -1 - requested, requested % max(1, len(self)))
        batch = self._read_boxes(positions, np.where(requested < 0, -1, positions), keys)
        while self.training and not batch.images:  # ends, because the counter raises if no readable image is left
            positions = (positions + 1) % len(self)
            batch = self._read_boxes(positions, positions, keys)
        if not batch.images:  # all processes need the same number of batches
            blank = torch.zeros(3, _BLANK_SIDE, _BLANK_SIDE, dtype=torch.uint8)
            batch = BoxBatch([blank], [{"image": torch.tensor(-1)}])
        return batch if self.raw else BoxBatch([self.normalize(image) for image in batch.images], batch.targets)

    def normalize(self, image: Tensor) -> Tensor:
        """Normalise an image: (3, H, W) uint8 → (3, H, W) float32."""
        return self.augment.pixels.normalize(image[None])[0]

    def _read_boxes(self, positions: np.ndarray, numbers: np.ndarray, keys: np.ndarray) -> BoxBatch:
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
