"""Pictures become tensors: resized, augmented, normalised. What an image draws depends on its own key alone.

A key is a hash of (seed, epoch, number of the image), so the same image is augmented alike in whatever batch, worker
process or process of a distributed run it comes up, and also after a resume.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from PIL import Image
from timm.data import auto_augment, create_transform
from timm.data.random_erasing import RandomErasing
from torch import Tensor


@lru_cache(maxsize=16)
def _per_channel(values: tuple[float, ...], device: torch.device) -> Tensor:
    """Return (3,) numbers as a tensor (1, 3, 1, 1). It is cached, because moving it to a GPU makes the host wait."""
    with torch.inference_mode(False):  # the first call may come from a validation
        return torch.tensor(values, device=device).view(1, 3, 1, 1)


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

    def normalize(self, pixels: Tensor) -> Tensor:
        """Turn what `Augment.batch` returns into images: (B, C, S, S) uint8 → (B, 3, S, S) float32, on any device.

        C is 1 or 3, plus 1 if the last channel is a mask. Where the mask is 0, the pixel is erased (mean colour).
        """
        mean, std = _per_channel(self.mean, pixels.device), _per_channel(self.std, pixels.device)
        colours = 1 if pixels.shape[1] < 3 else 3
        images = (pixels[:, :colours].float().div_(255) - mean).div_(std)  # grey is repeated by broadcasting
        return images if colours == pixels.shape[1] else images.masked_fill_(pixels[:, colours:] == 0, 0)


class Augment:
    """Augmentation by keys; without any, resize and centre crop.

    Args:
        pixels: size and normalisation.
        augment: "none", "light" (shift by up to `shift` of the size, flip), "imagenet" (RandomResizedCrop, flip,
            colour) or a timm auto-augment string such as "rand-m9-mstd0.5-inc1" (in place of colour).
        shift: how far "light" shifts, as a share of the size.
        hflip: probability of a mirror image, where `augment` is not "none".
        random_erasing: probability of a black rectangle.
    """

    def __init__(
        self,
        pixels: Pixels,
        augment: str = "none",
        *,
        shift: float = 0.125,
        hflip: float = 0.5,
        random_erasing: float = 0.0,
    ) -> None:
        self.pixels = pixels
        self.plain = augment in ("none", "light")
        self.light, self.hflip = augment == "light", hflip
        self.reach = round(shift * pixels.image_size)
        self.transform = (
            pixels.eval_transform(normalize=False) if self.plain else pixels.train_transform(augment, hflip)
        )
        self.erase = RandomErasing(random_erasing, device="cpu") if random_erasing else None

    def picture(self, picture: Image.Image, key: int) -> np.ndarray:
        """Any size → (3, S, S) uint8; call it within `kept_random_state`."""
        if not self.plain:
            seed_globals(key)
        return np.asarray(self.transform(picture))

    def batch(self, pixels: np.ndarray, keys: np.ndarray) -> Tensor:
        """Augment a batch before normalisation; call this within `kept_random_state`.

        Args:
            pixels: (B, C, S, S) uint8, where C is 1 or 3.
            keys: (B,) uint64.

        Returns:
            (B, C, S, S) uint8, or (B, C + 1, S, S) with random erasing; the input of `Pixels.normalize`.
        """
        if self.light:
            pixels = shift_and_flip(pixels, self.reach, self.hflip, keys)
        images = torch.from_numpy(pixels)
        if self.erase is None:
            return images
        kept = torch.ones_like(images[:, :1], dtype=torch.float32)  # (B, 1, S, S); timm erases by setting to 0
        for mask, key in zip(kept, keys, strict=True):
            seed_globals(int(key) ^ 1)
            self.erase(mask)  # in place
        return torch.cat([images, kept.to(torch.uint8)], 1)


def image_keys(*numbers: int, images: np.ndarray) -> np.ndarray:
    """(B,) uint64: a hash of `numbers` (seed, epoch, …) and the number of each image, (B,) integers."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = _mix(key ^ np.uint64(number % 2**64))
    return _mix(key ^ images.astype(np.uint64))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """(B,) uint64 → (B, count) float64, uniform in [0, 1)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    drawn: np.ndarray = np.multiply(_mix(keys[:, None] + steps) >> np.uint64(11), 2.0**-53)
    return drawn


def _mix(x: np.ndarray) -> np.ndarray:
    # SplitMix64 (Steele, Lea and Flood 2014): every bit of the input moves every bit of the output
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    mixed: np.ndarray = x ^ (x >> np.uint64(31))
    return mixed


def shift_and_flip(pixels: np.ndarray, pad: int, hflip: float, keys: np.ndarray) -> np.ndarray:
    """Pad by `pad` black pixels, crop at random to the old size, mirror some: (B, C, H, W) uint8 → the same."""
    batch, channels, height, width = pixels.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), pixels.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = pixels
    top, left, flip = uniforms(keys, 3).T
    top, left = ((2 * pad + 1) * np.stack([top, left])).astype(int)
    mirrored = flip < hflip
    out = np.empty_like(pixels, order="C")
    for i in range(batch):  # slices of rows: three times as fast as one gather over all pixels
        crop = padded[i, :, top[i] : top[i] + height, left[i] : left[i] + width]
        out[i] = crop[:, :, ::-1] if mirrored[i] else crop
    return out


def seed_globals(key: int) -> None:
    """Seed Python's, numpy's and torch's CPU generator from a key of 64 bits; timm's transforms draw from all three."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def kept_random_state() -> Iterator[None]:
    """Put the global random states back afterwards."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


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
