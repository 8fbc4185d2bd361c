"""What `ImageDataModule` says of options and files that will not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from acmix_zoo.data.formats import is_lost_image, skip_advice
from acmix_zoo.data.images import Inspection, bad_images
from acmix_zoo.data.sources import Images
from acmix_zoo.data.walk import find_images, walk_folders

AUGMENTS = ("none", "light", "imagenet")


class UnusableImages(ValueError):
    """Some files that a run would use are not readable images. Raised in every process."""


def check_options(
    val_fraction: float, shift: float, interpolation: str, augment: str, max_bad: int, counts: dict[str, int]
) -> None:
    """
    Raises:
        ValueError: an option is none; `counts` are those that must be at least 1.
    """
    if not 0 <= val_fraction < 1:
        raise ValueError(f"val_fraction={val_fraction}: expected a share in [0, 1)")
    if min(counts.values()) < 1 or max_bad < 0:
        given = ", ".join(f"{name}={count}" for name, count in counts.items())
        raise ValueError(f"{given}: each must be at least 1, and max_bad={max_bad} at least 0")
    if interpolation not in ("nearest", "bilinear", "bicubic", "lanczos"):
        raise ValueError(f"interpolation={interpolation!r}: expected nearest, bilinear, bicubic or lanczos")
    if augment not in AUGMENTS and not augment.startswith(("rand", "augmix", "original", "v0", "3a")):
        raise ValueError(f"augment={augment!r}: expected {', '.join(AUGMENTS)} or a timm string such as 'rand-m9-inc1'")
    if not 0 <= shift < 1:
        raise ValueError(f"shift={shift}: expected a share of the image's side, in [0, 1)")


def fitting_batch_size(batch_size: int, images: int, processes: int, accumulated: int) -> tuple[int, str]:
    """Return a batch size no larger than a process's share of the training images, and a warning if the given batch
    size is too large ("" if it is not).

    Learning rates are scaled by the batch size, so it must be the size that batches actually have.
    """
    share = max(1, images // processes)
    where = f"the {images} training images" + f" on {processes} processes" * (processes > 1)
    if batch_size > share:
        return share, f"data: batch size {batch_size} is larger than {where}; using {share} instead"
    if batch_size * accumulated > share:
        step = f"an optimiser step of {accumulated} × {batch_size} images is larger than {where}"
        return batch_size, f"data: {step}. Lower trainer.accumulate_grad_batches"
    return batch_size, ""


def three_numbers(mean: Sequence[float], std: Sequence[float]) -> tuple[tuple[float, float, float], ...]:
    """
    Raises:
        ValueError: not one number a channel, or a deviation that is not positive.
    """
    for values in (mean, std):
        if len(values) != 3:
            raise ValueError(f"mean and std: expected three numbers, one a channel, found {list(values)}")
    if min(std) <= 0:
        raise ValueError(f"std={list(std)}: expected positive numbers")
    return tuple((float(values[0]), float(values[1]), float(values[2])) for values in (mean, std))


def check_images(parts: Mapping[str, tuple[Images, np.ndarray]], thorough: bool = False) -> dict[str, Inspection]:
    """Check the images that a run will use, so that it does not fail on an unreadable one after days of training.

    Args:
        parts: for each split, the images and the indices of those that belong to it.
        thorough: decode every image of the test split, because all of them have to be readable.

    Returns:
        The result of the check for each split.

    Raises:
        UnusableImages: some images cannot be read; the message lists them.
    """
    found = {
        name: images.inspect(indices.tolist(), thorough and name == "test") for name, (images, indices) in parts.items()
    }
    if message := "\n".join(unreadable(name, inspection) for name, inspection in found.items() if inspection.problems):
        raise UnusableImages(message)
    return found


def unreadable(name: str, inspection: Inspection) -> str:
    """Return a message that lists the first unreadable images of the split `name`."""
    problems = inspection.problems
    shown = "\n  ".join(problems[:5])
    more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
    return (
        f"{len(problems)} of {inspection.count} {name} images cannot be used; repair or remove them:\n  {shown}{more}"
    )


def pictures_to_predict(source: str | None) -> list[str]:
    """Paths of the pictures that `predict_source` names: itself, or those in it.

    Raises:
        FileNotFoundError: it does not exist. ValueError: nothing to predict, or unreadable files (named).
    """
    if source is None:
        raise ValueError(
            "there is nothing to predict. Expected a picture or a folder of pictures: --data.predict_source PATH, or "
            "in Python ImageDataModule(..., predict_source=PATH)"
        )
    place = Path(source).expanduser()
    if not place.exists():
        raise FileNotFoundError(
            f"--data.predict_source {place} does not exist; expected a picture or a folder of pictures"
        )
    found = find_images(place) if place.is_dir() else [str(place)]
    if not found:
        skipped = [ext for ext in walk_folders([place]).skipped if ext.startswith(".") and is_lost_image(ext)]
        reasons = "".join(f", and {extension} files: {skip_advice(extension)}" for extension in sorted(skipped))
        raise ValueError(f"--data.predict_source {place} contains no pictures{reasons}")
    if problems := bad_images(found):
        raise ValueError(f"{len(problems)} files cannot be predicted; repair or remove them: {'; '.join(problems[:5])}")
    return found
