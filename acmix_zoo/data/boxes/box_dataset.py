"""`BoxDataset`: images with boxes as a PyTorch dataset that returns whole batches, and their loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import torch
from PIL import Image
from torch import Tensor

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages
from acmix_zoo.data.boxes.box_augment import BoxAugment, Target, trainable_target
from acmix_zoo.data.boxes.box_summary import summarize_boxes
from acmix_zoo.data.boxes.objects import make_objects
from acmix_zoo.data.example_dataset import ExampleDataset, Numbered
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.inspection import Inspection

_BLANK_SIDE = 32  # pixels


class BoxBatch(NamedTuple):
    """The images of one step.

    Attributes:
        images: B images (3, H, W) of different sizes, uint8; float32 after normalisation.
        targets: the target of each image. In evaluation, its `image`, () int64, is the position of the image in the
            split, or -1 for a padding image.
    """

    images: list[Tensor]
    targets: list[Target]


class BoxDataset(ExampleDataset[tuple[Tensor, Target]]):
    """Dataset of images with boxes, see `ExampleDataset`.

    Args:
        split: `AnnotatedImages`, or images without annotations for prediction, and the indices of those that belong to
            the dataset.
        augment: size and augmentation.
    """

    augment: BoxAugment

    def read_example(self, index: int, key: int) -> tuple[Tensor, Target]:
        images = self.images
        objects = images.objects[index] if isinstance(images, AnnotatedImages) else make_objects([], [])
        return self.augment(images.image(index), objects, key)

    def __getitems__(self, indices: Sequence[int]) -> BoxBatch:  # type: ignore[override]
        """Return the batch with these indices. In training, crowds are left out.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        examples = self.read_examples(indices)
        if not examples:  # all processes need the same number of batches
            blank = Image.new("RGB", (_BLANK_SIDE, _BLANK_SIDE))
            examples = [Numbered(-1, self.augment(blank, make_objects([], []), 0))]
        batch = BoxBatch([], [])
        for number, (pixels, target) in examples:
            batch.images.append(pixels if self.raw else self.augment.pixels.normalize(pixels[None])[0])
            batch.targets.append(
                trainable_target(target) if self.training else {**target, "image": torch.tensor(number)}
            )
        return batch


class BoxLoaders(IndexedLoaders):
    """Loaders of a `BoxSource`. The augmentation in their options is a `BoxAugment`.

    Attributes:
        evaluation_size: maximum lengths of the shorter and the longer side of an image in evaluation, for the summary;
            None if they are not known.
    """

    dataset_class = BoxDataset
    evaluation_size: tuple[int, int] | None = None

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        return summarize_boxes(self.source, self.splits, inspections, self.evaluation_size, is_brief)
