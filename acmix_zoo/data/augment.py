"""Turn images into tensors: resize, augment and normalise them.

The random numbers of an image depend only on its key, which is a hash of (seed, epoch, number of the image). An image
is therefore augmented in the same way in whichever batch, worker or process it is loaded, and also after a resume.
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
    """Return C numbers as a tensor (1, C, 1, 1). It is cached, because moving it to a GPU makes the host wait."""
    with torch.inference_mode(False):  # the first call may come from a validation
        return torch.tensor(values, device=device).view(1, -1, 1, 1)


@dataclass(frozen=True)
class Pixels:
    """Size and normalisation of images.

    Attributes:
        image_size: side length S of the square images, in pixels.
        mean, std: mean and standard deviation of each channel, for pixel values between 0 and 1.
        interpolation: "nearest", "bilinear", "bicubic" or "lanczos".
        crop_pct: fraction of the shorter side that the centre crop of the evaluation keeps.
    """

    image_size: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    interpolation: str
    crop_pct: float

    def config(self) -> dict[str, Any]:
        """Return all but the size as fields of timm's pretrained_cfg."""
        mean, std = list(self.mean), list(self.std)
        return {"mean": mean, "std": std, "interpolation": self.interpolation, "crop_pct": self.crop_pct}

    def eval_transform(self, normalize: bool = True) -> Callable[[Any], Tensor]:
        """Return timm's resize and centre crop: PIL image → (3, S, S), float32, or uint8 without `normalize`."""
        transform: Callable[[Any], Tensor] = create_transform(
            (3, self.image_size, self.image_size),
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
            crop_pct=self.crop_pct,
            normalize=normalize,
        )
        return transform

    def train_transform(self, augment: str, hflip: float, crop_scale: tuple[float, float]) -> Callable[[Any], Tensor]:
        """Return timm's RandomResizedCrop, flip and colour jitter (or auto-augment): PIL image → (3, S, S) uint8.

        The arguments are those of `Augment`.

        Raises:
            ValueError: timm does not know the auto-augment string.
        """
        policy = None if augment in ("crop", "imagenet") else augment
        try:
            transform: Callable[[Any], Tensor] = create_transform(
                (3, self.image_size, self.image_size),
                is_training=True,
                scale=crop_scale,
                hflip=hflip,
                # None turns it off. timm does so itself for auto-augment, except for 3a.
                color_jitter=None if augment == "crop" else 0.4,  # type: ignore[arg-type]
                auto_augment=policy,
                interpolation=self.interpolation,
                mean=self.mean,
                std=self.std,
                normalize=False,
            )
        except (AssertionError, ValueError, IndexError, KeyError) as error:
            if policy is None:
                raise
            raise ValueError(
                f"augment={augment!r} is no auto-augment string of timm. Expected one such as 'rand-m9-inc1'"
            ) from error
        _allow_zero_bits(transform)
        return transform

    def normalize(self, pixels: Tensor) -> Tensor:
        """Normalise the result of `Augment.batch`: (B, C, S, S) uint8 → (B, 3, S, S) float32, on any device.

        C is 1 or 3, plus 1 if the last channel is a mask. Where the mask is 0, the pixel is erased (set to the mean).
        """
        mean, std = _per_channel(self.mean, pixels.device), _per_channel(self.std, pixels.device)
        colours = 1 if pixels.shape[1] < 3 else 3
        # Divided by a tensor, because a GPU would multiply by the rounded inverse of a number.
        images = pixels[:, :colours].float().div_(_per_channel((255.0,), pixels.device))
        images = (images - mean).div_(std)  # grey is repeated by broadcasting
        return images if colours == pixels.shape[1] else images.masked_fill_(pixels[:, colours:] == 0, 0)


class Augment:
    """Augmentation of images and batches. The default only resizes and crops.

    Args:
        pixels: size and normalisation.
        augment: "none"; "light" (shift and flip, for small images); "crop" (RandomResizedCrop and flip); "imagenet"
            (also colour jitter); or an auto-augment string of timm, such as "rand-m9-mstd0.5-inc1" (in place of colour
            jitter).
        shift: maximum shift of "light", as a fraction of the side length.
        crop_scale: smallest and largest fraction of the image's area that RandomResizedCrop keeps.
        hflip: probability of a horizontal flip, unless `augment` is "none".
        random_erasing: probability of erasing a rectangle.

    Attributes:
        is_batchwise: whether all random augmentation is applied by `batch`, not by `image`.
    """

    def __init__(
        self,
        pixels: Pixels,
        augment: str = "none",
        *,
        shift: float = 0.125,
        crop_scale: tuple[float, float] = (0.08, 1.0),
        hflip: float = 0.5,
        random_erasing: float = 0.0,
    ) -> None:
        self.pixels = pixels
        self.is_batchwise = augment in ("none", "light")
        self.is_light, self.hflip = augment == "light", hflip
        self.max_shift = round(shift * pixels.image_size)
        self.transform = (
            pixels.eval_transform(normalize=False)
            if self.is_batchwise
            else pixels.train_transform(augment, hflip, crop_scale)
        )
        self.erase = RandomErasing(random_erasing, device="cpu") if random_erasing else None

    def for_evaluation(self) -> Augment:
        """Return the preprocessing of evaluation, which only resizes and crops."""
        return Augment(self.pixels)

    def image(self, image: Image.Image, key: int) -> np.ndarray:
        """Resize an image of any size to (3, S, S) uint8, and augment it. Call this within `preserve_random_state`."""
        if not self.is_batchwise:
            seed_globals(key)
        return np.asarray(self.transform(image))

    def batch(self, pixels: np.ndarray, keys: np.ndarray) -> Tensor:
        """Augment a batch before normalisation. Call this within `preserve_random_state`.

        Args:
            pixels: (B, C, S, S) uint8, where C is 1 or 3.
            keys: (B,) uint64.

        Returns:
            (B, C, S, S) uint8, or (B, C + 1, S, S) with random erasing; the input of `Pixels.normalize`.
        """
        if self.is_light:
            pixels = shift_and_flip(pixels, self.max_shift, self.hflip, keys)
        images = torch.from_numpy(pixels)
        if self.erase is None:
            return images
        masks = torch.ones_like(images[:, :1], dtype=torch.float32)  # (B, 1, S, S); timm erases by setting to 0
        for mask, key in zip(masks, keys, strict=True):
            seed_globals(int(key) ^ 1)
            self.erase(mask)  # in place
        return torch.cat([images, masks.to(torch.uint8)], 1)


def image_keys(*numbers: int, images: np.ndarray) -> np.ndarray:
    """Return (B,) uint64: a hash of `numbers` (seed, epoch, …) and the number of each image, (B,) integers."""
    key = np.zeros(1, np.uint64)
    for number in numbers:
        key = _hash(key ^ np.uint64(number % 2**64))
    return _hash(key ^ images.astype(np.uint64))


def uniforms(keys: np.ndarray, count: int) -> np.ndarray:
    """Return `count` random numbers for each key: (B,) uint64 → (B, count) float64, uniform in [0, 1)."""
    steps = np.arange(1, count + 1, dtype=np.uint64) * np.uint64(0x9E3779B97F4A7C15)
    drawn: np.ndarray = np.multiply(_hash(keys[:, None] + steps) >> np.uint64(11), 2.0**-53)
    return drawn


def _hash(x: np.ndarray) -> np.ndarray:
    # SplitMix64 (Steele, Lea and Flood 2014): every bit of the input affects every bit of the output
    x = x + np.uint64(0x9E3779B97F4A7C15)
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    hashed: np.ndarray = x ^ (x >> np.uint64(31))
    return hashed


def shift_and_flip(pixels: np.ndarray, pad: int, hflip: float, keys: np.ndarray) -> np.ndarray:
    """Pad images with black, crop them at random to their old size, and flip some horizontally.

    Args:
        pixels: (B, C, H, W) uint8.
        pad: number of pixels to pad with on each side.
        hflip: probability of a flip.
        keys: (B,) uint64, the keys of the images.

    Returns:
        (B, C, H, W) uint8.
    """
    batch, channels, height, width = pixels.shape
    padded = np.zeros((batch, channels, height + 2 * pad, width + 2 * pad), pixels.dtype)
    padded[:, :, pad : pad + height, pad : pad + width] = pixels
    top, left, flip = uniforms(keys, 3).T
    top, left = ((2 * pad + 1) * np.stack([top, left])).astype(int)
    is_flipped = flip < hflip
    out = np.empty_like(pixels, order="C")
    for i in range(batch):  # slices of rows: three times as fast as one gather over all pixels
        crop = padded[i, :, top[i] : top[i] + height, left[i] : left[i] + width]
        out[i] = crop[:, :, ::-1] if is_flipped[i] else crop
    return out


def seed_globals(key: int) -> None:
    """Seed the global generators of Python, NumPy and PyTorch (CPU), all of which timm's transforms use, from a key."""
    random.seed(key)
    np.random.seed(key & 0xFFFFFFFF)
    torch.default_generator.manual_seed(key & 0x7FFFFFFFFFFFFFFF)


@contextmanager
def preserve_random_state() -> Iterator[None]:
    """Restore the state of the global random number generators afterwards."""
    python_state, numpy_state, torch_state = random.getstate(), np.random.get_state(), torch.get_rng_state()
    try:
        yield
    finally:
        random.setstate(python_state)
        np.random.set_state(numpy_state)
        torch.set_rng_state(torch_state)


def _allow_zero_bits(transform: Any) -> None:
    """Let posterize in timm's auto-augment keep 0 bits, which makes the image black. Pillow 13 raises instead."""
    for step in transform.transforms:
        ops = [*getattr(step, "ops", ()), *(op for policy in getattr(step, "policy", ()) for op in policy)]
        for op in ops:
            if op.aug_fn is auto_augment.posterize:
                op.aug_fn = _posterize


def _posterize(image: Image.Image, bits: int, **_: Any) -> Image.Image:
    posterized: Image.Image = auto_augment.posterize(image, bits) if bits else Image.new(image.mode, image.size)
    return posterized
