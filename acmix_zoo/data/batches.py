"""Batches of tensors: pictures are brought to size one by one and augmented, as bytes, a batch at a time."""

from __future__ import annotations

import random
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor
from torch.utils.data import Dataset

from acmix_zoo.data.images import BadImage
from acmix_zoo.data.sources import ArrayImages, Images

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True)
class Pixels:
    """How pictures become tensors; the fields are timm's."""

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    def eval_transform(self, normalize: bool = True) -> Callable[[Any], Tensor]:
        """timm's resize and centre crop: PIL → (3, S, S), float32 normalised, or uint8 without `normalize`."""
        transform: Callable[[Any], Tensor] = create_transform(
            (3, self.image_size, self.image_size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            normalize=normalize,
        )
        return transform

    def train_transform(self, augment: str, hflip: float) -> Callable[[Any], Tensor]:
        """timm's RandomResizedCrop, flip and colour (or auto-augment): PIL → (3, S, S) uint8."""
        transform: Callable[[Any], Tensor] = create_transform(
            (3, self.image_size, self.image_size),
            is_training=True,
            hflip=hflip,
            auto_augment=None if augment == "imagenet" else augment,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            normalize=False,
        )
        _mend_posterize(transform)
        return transform

    def normalize(self, pixels: np.ndarray) -> Tensor:
        """(B, 1 or 3, S, S) uint8 → (B, 3, S, S) float32."""
        mean = torch.tensor(self.mean).view(1, 3, 1, 1)
        std = torch.tensor(self.std).view(1, 3, 1, 1)
        return (torch.from_numpy(pixels).float().div_(255) - mean).div_(std)  # grey is repeated by broadcasting


class ImageDataset(Dataset[tuple[Tensor, int]]):
    """`dataset[i]` is an image (3, S, S) and its class; the loader asks for whole batches through `__getitems__`.

    Args:
        images: the pictures; `indices` says which of them belong here.
        pixels: size and normalisation.
        augment: "none", "light" (shift by up to `shift` of the size, flip), "imagenet" (RandomResizedCrop, flip,
            colour) or a timm auto-augment string such as "rand-m9-mstd0.5-inc1" (in place of colour).
        shift: how far "light" shifts, as a share of the size.
        hflip: probability of a mirror image, where `augment` is not "none".
        random_erasing: probability of a black rectangle.
        seed: random numbers of a batch are given by (seed, epoch, first index), whoever loads it.
        skip_bad: leave unreadable pictures out of the batch with a warning instead of raising.
        with_index: give the index in place of the class.
    """

    def __init__(
        self,
        images: Images,
        indices: np.ndarray,
        pixels: Pixels,
        *,
        augment: str = "none",
        shift: float = 0.125,
        hflip: float = 0.5,
        random_erasing: float = 0.0,
        seed: int = 0,
        skip_bad: bool = False,
        with_index: bool = False,
    ) -> None:
        self.images, self.indices, self.pixels = images, indices, pixels
        self.light, self.hflip, self.seed, self.skip_bad = augment == "light", hflip, seed, skip_bad
        self.reach = round(shift * pixels.image_size)
        self.targets = np.arange(len(indices)) if with_index else images.targets[indices]
        self.epoch = 0  # kept by EpochSampler
        # in memory at the right size: nothing to do for a single picture
        size = pixels.image_size
        plain = augment in ("none", "light")
        self.array: np.ndarray | None = None
        if (
            plain
            and isinstance(images, ArrayImages)
            and images.array.shape[2:] == (size, size)
            and pixels.crop_pct == 1
        ):
            self.array = images.array
        self.transform = pixels.eval_transform(normalize=False) if plain else pixels.train_transform(augment, hflip)
        self.erase = RandomErasing(random_erasing, device="cpu") if random_erasing else None
        self.random = bool(self.erase) or augment != "none"

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        images, targets = self.__getitems__([index])
        return images[0], int(targets[0])

    def __getitems__(self, indices: Sequence[int]) -> Batch:
        """Images (B, 3, S, S) float32 and classes (B,) int64.

        Raises:
            BadImage: a picture cannot be read and is not to be skipped, or none of the batch can be read.
        """
        if not self.random:
            pixels, targets = self._read(indices)
            return self.pixels.normalize(pixels), torch.from_numpy(targets)
        with seeded(self.seed, self.epoch, int(indices[0])) as generator:
            pixels, targets = self._read(indices)
            if self.light:
                pixels = shift_and_flip(pixels, self.reach, self.hflip, generator)
            images = self.pixels.normalize(pixels)
            return (self.erase(images) if self.erase else images), torch.from_numpy(targets)

    def _read(self, indices: Sequence[int]) -> tuple[np.ndarray, np.ndarray]:
        targets = self.targets[np.asarray(indices)].astype(np.int64)
        if self.array is not None:
            return self.array[self.indices[np.asarray(indices)]], targets
        pixels, kept = [], []
        for place, index in enumerate(indices):
            try:
                pixels.append(np.asarray(self.transform(self.images.image(int(self.indices[index])))))
                kept.append(place)
            except BadImage as error:
                if not self.skip_bad:
                    raise BadImage(f"{error}; repair or remove it and run the command again") from error
                warnings.warn(f"left out: {error}", stacklevel=2)
        if not kept:
            raise BadImage(f"none of the {len(indices)} images of a batch can be read; is the disk still there?")
        return np.stack(pixels), targets[kept]


def shift_and_flip(pixels: np.ndarray, pad: int, hflip: float, generator: np.random.Generator) -> np.ndarray:
    """Pad by `pad` black pixels, crop at random to the old size, mirror some: (B, C, H, W) uint8 → the same."""
    batch, channels, height, width = pixels.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), pixels.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = pixels
    top, left = generator.integers(0, 2 * pad + 1, (2, batch))
    mirrored = np.less(generator.random(batch), hflip)
    out = np.empty_like(pixels, order="C")
    for i in range(batch):  # slices of rows: three times as fast as one gather over all pixels
        crop = padded[i, :, top[i] : top[i] + height, left[i] : left[i] + width]
        out[i] = crop[:, :, ::-1] if mirrored[i] else crop
    return out


def _mend_posterize(transform: Any) -> None:
    # timm's auto-augment may ask to keep 0 bits; Pillow 13 refuses, where older ones gave a black picture
    for step in transform.transforms:
        ops = [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]
        for op in ops:
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    posterized: Image.Image = auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)
    return posterized


@contextmanager
def seeded(*numbers: int) -> Iterator[np.random.Generator]:
    """A generator made from `numbers`; the global ones, which timm's transforms use, follow it and are put back."""
    generator = np.random.default_rng(numbers)
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        seed = int(generator.integers(2**32))
        random.seed(seed)
        np.random.seed(seed)
        torch.default_generator.manual_seed(seed)
        yield generator
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def as_is(batch: Any) -> Any:
    """The loader's collate function: `__getitems__` already made a batch."""
    return batch
