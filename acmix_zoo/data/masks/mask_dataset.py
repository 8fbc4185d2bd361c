"""`MaskDataset`: images with masks as a PyTorch dataset that returns whole batches, and their loaders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.nn.functional import pad

from acmix_zoo.data.augment import preserve_random_state
from acmix_zoo.data.example_dataset import ExampleDataset, Numbered
from acmix_zoo.data.indexed_loaders import IndexedLoaders
from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.masks.mask_augment import MaskAugment
from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_images import MaskImages, Pair
from acmix_zoo.data.masks.mask_summary import summarize_masks

_BLANK_SIDE = 64  # pixels


class MaskBatch(NamedTuple):
    """A batch. Images and masks of different sizes are padded at the right and at the bottom.

    Attributes:
        images: (B, 3, H, W) uint8; float32 after normalisation.
        masks: (B, h, w) uint8, the class of each pixel, or `VOID`.
        sizes: (B, 4) int64, height and width of each image and of its mask, before padding.
        indices: (B,) int64, the position of each image in the split; -1 for a padding image, whose mask is `VOID`.
    """

    images: Tensor
    masks: Tensor
    sizes: Tensor
    indices: Tensor


class MaskDataset(ExampleDataset[tuple[Tensor, Tensor]]):
    """Dataset of images with masks, see `ExampleDataset`.

    Args:
        split: `MaskImages`, or images without masks for prediction, and the indices of those that belong to the
            dataset.
        augment: augmentation of images and masks.
    """

    augment: MaskAugment

    def read_example(self, index: int, key: int) -> tuple[Tensor, Tensor]:
        if isinstance(self.images, MaskImages):
            pair = self.images.pair(index)
        else:
            image = self.images.image(index)
            pair = Pair(image, np.zeros(image.size[::-1], np.uint8))
        with preserve_random_state():
            return self.augment(pair, key)

    def __getitems__(self, indices: Sequence[int]) -> MaskBatch:  # type: ignore[override]
        """Return the batch with these indices.

        Raises:
            UnreadableImage: all images are unreadable, or more than allowed.
        """
        examples, fill = self.read_examples(indices), self.augment.fill
        for number, (_, mask) in examples:
            if number < 0:
                mask.fill_(VOID)
        if not examples:  # all processes need the same number of batches
            blank = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1).expand(3, _BLANK_SIDE, _BLANK_SIDE)
            void = torch.full((_BLANK_SIDE, _BLANK_SIDE), VOID, dtype=torch.uint8)
            examples = [Numbered(-1, (blank, void))]
        batch = collate([content for _, content in examples], [number for number, _ in examples], fill)
        return batch if self.raw else batch._replace(images=self.augment.pixels.normalize(batch.images))


def collate(pairs: Sequence[tuple[Tensor, Tensor]], indices: Sequence[int], fill: Sequence[int]) -> MaskBatch:
    """Combine images (3, H, W) and masks (h, w) into a batch, and pad them to the largest size."""
    sizes = torch.tensor([[*image.shape[1:], *mask.shape] for image, mask in pairs])  # (B, 4)
    height, width, mask_height, mask_width = sizes.amax(0).tolist()
    images = torch.empty(len(pairs), 3, height, width, dtype=torch.uint8)
    images[:] = torch.tensor(fill, dtype=torch.uint8).view(3, 1, 1)
    for target, (image, _) in zip(images, pairs, strict=True):
        target[:, : image.shape[1], : image.shape[2]] = image
    masks = [
        pad(mask, (0, mask_width - mask.shape[1], 0, mask_height - mask.shape[0]), value=VOID) for _, mask in pairs
    ]
    return MaskBatch(images, torch.stack(masks), sizes, torch.tensor(indices))


class MaskLoaders(IndexedLoaders):
    """Loaders of images with masks."""

    dataset_class = MaskDataset

    def summary(self, inspections: Mapping[str, Inspection], is_brief: bool = False) -> str:
        return summarize_masks(self.source, self.splits, inspections, is_brief)
