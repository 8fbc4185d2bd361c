"""Check the options of the data modules."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import NamedTuple

INTERPOLATIONS = ("nearest", "bilinear", "bicubic", "lanczos")
AUGMENTATIONS = ("none", "light", "crop", "imagenet")
_TIMM_AUGMENTATIONS = ("rand", "augmix", "original", "v0", "3a")  # prefixes of timm's auto-augment strings


class ChannelStats(NamedTuple):
    """Mean and standard deviation of each channel, for pixel values between 0 and 1."""

    mean: tuple[float, float, float]
    std: tuple[float, float, float]


def check_shared_options(
    positive: Mapping[str, int], num_workers: int, max_unreadable: int, val_fraction: float, seed: int
) -> None:
    """Check the values of options that all data modules have.

    Args:
        positive: the options that must be at least 1, by name.
        num_workers: number of processes that load images.
        max_unreadable: number of unreadable images to skip.
        val_fraction: fraction of the training images used for validation.
        seed: seed of the order, the augmentation and the split.

    Raises:
        ValueError: an option has a value that is not allowed.
    """
    for name, value in positive.items():
        if value < 1:
            raise ValueError(f"{name}={value} is too small. Use 1 or more")
    if num_workers < 0:
        raise ValueError(f"num_workers={num_workers} is negative. Use 0 to load images in the training process")
    if max_unreadable < 0:
        raise ValueError(f"max_unreadable={max_unreadable} is negative. Use 0 to allow no unreadable image")
    if seed < 0:
        raise ValueError(f"seed={seed} is negative. Use 0 or more")
    if not 0 <= val_fraction < 1:
        raise ValueError(
            f"val_fraction={val_fraction} is not a fraction of the training images. Use a number from 0 to below 1"
        )


def check_probabilities(**options: float) -> None:
    """Check that options are probabilities.

    Raises:
        ValueError: one is not.
    """
    for name, value in options.items():
        if not 0 <= value <= 1:
            raise ValueError(f"{name}={value} is not a probability. Use a number from 0 to 1")


def check_mixing(**options: float) -> None:
    """Check alpha of mixup and cutmix.

    Raises:
        ValueError: one is negative.
    """
    for name, value in options.items():
        if not value >= 0:
            raise ValueError(f"{name}={value} is negative. Use 0 to turn it off, or alpha of a Beta distribution (0.2)")


def check_augmentation(*, shift: float, crop_scale: Sequence[float], interpolation: str, augment: str) -> None:
    """Check the options of `ImageDataModule` that say how images are resized and augmented.

    Raises:
        ValueError: an option has a value that is not allowed.
    """
    if not 0 <= shift < 1:
        raise ValueError(f"shift={shift} is not a fraction of an image's side length. Use a number from 0 to below 1")
    if len(crop_scale) != 2 or not 0 < crop_scale[0] <= crop_scale[1] <= 1:
        raise ValueError(
            f"crop_scale={list(crop_scale)} is not a range of fractions of the image. Give the smallest and the "
            "largest, such as [0.25, 1.0]"
        )
    if augment in ("none", "light") and tuple(crop_scale) != (0.08, 1.0):
        raise ValueError(
            f"crop_scale={list(crop_scale)} has no effect with augment={augment!r}, which does not crop. Set "
            "data.augment to crop or imagenet, or remove data.crop_scale"
        )
    if interpolation not in INTERPOLATIONS:
        raise ValueError(f"interpolation={interpolation!r} is unknown. Use {_alternatives(INTERPOLATIONS)}")
    if augment not in AUGMENTATIONS and not augment.startswith(_TIMM_AUGMENTATIONS):
        raise ValueError(
            f"augment={augment!r} is unknown. Use {', '.join(AUGMENTATIONS)} or an auto-augment string of timm, such "
            "as 'rand-m9-inc1'"
        )


def _alternatives(names: Sequence[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


def channel_stats(mean: Sequence[float], std: Sequence[float]) -> ChannelStats:
    """Return the mean and standard deviation of the three channels as tuples.

    Raises:
        ValueError: there are not three numbers, a standard deviation is not positive, or they are not those of pixel
            values between 0 and 1.
    """
    for name, values in (("mean", mean), ("std", std)):
        if len(values) != 3:
            raise ValueError(f"{name}={list(values)} has {len(values)} numbers. Give three, one per channel")
    if min(std) <= 0:
        raise ValueError(f"std={list(std)} is not positive. Give three positive numbers")
    if min(mean) < 0 or max(mean) > 1 or max(std) > 1:
        raise ValueError(
            f"mean={list(mean)} and std={list(std)} are not those of pixel values between 0 and 1. Divide those of "
            "values up to 255 by 255"
        )
    return ChannelStats(*((float(values[0]), float(values[1]), float(values[2])) for values in (mean, std)))


def limit_batch_size(batch_size: int, images: int, processes: int) -> tuple[int, str]:
    """Limit the batch size to a process's share of the training images.

    Learning rates are scaled by the batch size, so it must be the size that batches actually have.

    Args:
        batch_size: requested number of images per batch and process.
        images: number of training images.
        processes: number of processes.

    Returns:
        The batch size to use, and a warning if it is smaller than the requested one ("" otherwise).
    """
    share = max(1, images // processes)
    if batch_size <= share:
        return batch_size, ""
    available = f"the {images} training images" + f" on {processes} processes" * (processes > 1)
    return share, f"data: batch size {batch_size} is larger than {available}; using {share} instead"
