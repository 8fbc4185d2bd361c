"""`MaskAugment`: geometric augmentation that moves an image and its mask together, and colour jitter of the image."""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor
from torchvision import tv_tensors
from torchvision.transforms import v2
from torchvision.transforms.v2 import functional as F

from acmix_zoo.data.augment import Pixels, seed_globals
from acmix_zoo.data.masks.mask_classes import VOID
from acmix_zoo.data.masks.mask_images import Pair


@dataclass(frozen=True)
class MaskAugment:
    """Resize, crop and flip an image with its mask, which is never interpolated.

    In training, an image is resized, padded if it is smaller than the crop, cropped at random and flipped. Padding has
    the mean colour, and no class. In evaluation, an image is only resized, and its mask keeps its size.

    Attributes:
        pixels: normalisation.
        crop_size: (height, width) of training images.
        resize: smallest and largest length of the shorter side in training, in pixels, of which one is drawn; None to
            keep the size.
        eval_resize: length of the shorter side in evaluation; None to keep the size.
        hflip: probability of a horizontal flip.
        color_jitter: change brightness, contrast, saturation and hue at random, and the order of the colour channels.
        training: whether to augment.
    """

    pixels: Pixels
    crop_size: tuple[int, int]
    resize: tuple[int, int] | None = None
    eval_resize: int | None = None
    hflip: float = 0.5
    color_jitter: bool = False
    training: bool = True

    @property
    def fill(self) -> list[int]:
        """The colour of padding, the mean: 0 to 255 in each channel."""
        return [round(255 * mean) for mean in self.pixels.mean]

    @cached_property
    def _transform(self) -> v2.Transform:
        """The random transforms of training."""
        steps: list[v2.Transform] = []
        if self.resize:
            smallest, largest = self.resize
            steps.append(v2.RandomResize(smallest, largest + 1))  # the upper end is exclusive
        fills = {tv_tensors.Image: self.fill, tv_tensors.Mask: VOID}
        steps.append(v2.RandomCrop(self.crop_size, pad_if_needed=True, fill=fills))
        steps.append(v2.RandomHorizontalFlip(self.hflip))
        if self.color_jitter:
            steps.append(v2.RandomPhotometricDistort())
        return v2.Compose(steps)

    def for_evaluation(self) -> MaskAugment:
        """Return the preprocessing of evaluation."""
        return replace(self, training=False)

    def __call__(self, pair: Pair, key: int) -> tuple[Tensor, Tensor]:
        """Return an image (3, H, W) and its mask (H, W), both uint8. Call this within `preserve_random_state`.

        Args:
            pair: the image and its mask.
            key: the key of the augmentation, see `acmix_zoo.data.augment`.
        """
        image, mask = tv_tensors.Image(F.pil_to_tensor(pair.image)), tv_tensors.Mask(torch.from_numpy(pair.mask))
        if self.training:
            seed_globals(key)
            image, mask = self._transform(image, mask)
        elif self.eval_resize and min(image.shape[1:]) != self.eval_resize:
            image = F.resize(image, [self.eval_resize])
        return image.as_subclass(Tensor), mask.as_subclass(Tensor)
