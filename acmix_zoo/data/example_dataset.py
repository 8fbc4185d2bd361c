"""`ExampleDataset`: what the datasets of images with masks and of images with boxes share."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np

from acmix_zoo.data.augment import image_keys
from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.images import UnreadableImage

T = TypeVar("T")


class Numbered(NamedTuple, Generic[T]):
    """An example with its number.

    Attributes:
        number: the position of the image in the split; -1 for a padding image, which must not be counted.
        content: the augmented image and its target.
    """

    number: int
    content: T


class ExampleDataset(ImageDataset, Generic[T]):
    """Base class of datasets of images with masks or boxes.

    Indices and arguments are those of `ImageDataset`, except for `augment`. A subclass implements `read_example`, and
    `__getitems__`, which combines the result of `read_examples` into a batch.
    """

    augment: Any

    @abstractmethod
    def read_example(self, index: int, key: int) -> T:
        """Return an augmented image and its target.

        Args:
            index: index of the image in `images`.
            key: the key of the augmentation, see `acmix_zoo.data.augment`.

        Raises:
            UnreadableImage: the image or its target cannot be read.
        """

    def read_examples(self, indices: Sequence[int]) -> list[Numbered[T]]:
        """Return the examples with these indices, except unreadable ones.

        In training, if none of them can be read, the next ones of the split are returned instead.

        Raises:
            UnreadableImage: all images of the split are unreadable, or more than allowed.
        """
        requested = np.asarray(indices)
        keys = image_keys(self.seed, self.epoch, images=requested).tolist()
        positions = np.where(requested < 0, -1 - requested, requested % max(1, len(self)))
        examples: list[Numbered[T]] = []
        while True:
            for position, key, index in zip(positions.tolist(), keys, requested.tolist(), strict=True):
                try:
                    content = self.read_example(int(self.indices[position]), key)
                except UnreadableImage as error:
                    self.unreadable.add(position, error)
                else:
                    examples.append(Numbered(-1 if index < 0 else position, content))
            if examples or not self.training:
                return examples
            positions = (positions + 1) % len(self)  # ends, because the counter raises if no readable image is left

    def _final_array(self) -> None:
        return None
