"""What `ImageDataModule` says of options and files that will not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from acmix_zoo.data.images import Inspection, inspect_images
from acmix_zoo.data.sources.base import Images, counted
from acmix_zoo.data.sources.walk import skip_remarks, walk_folders

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


def find_pictures(place: Path) -> tuple[list[str], list[str]]:
    """Return the paths of the pictures in a folder and its subfolders, and one line for each kind of skipped file.

    If `place` is a file, it is returned whatever its extension, because it was named explicitly.

    Raises:
        FileNotFoundError: `place` does not exist.
        ValueError: the folder contains no pictures; the message says what it contains instead.
    """
    if not place.exists():
        raise FileNotFoundError(f"{place} does not exist. Expected a picture or a folder of pictures; check the path")
    if not place.is_dir():
        return [str(place)], []
    walk = walk_folders([place])
    skipped = skip_remarks(walk, place)
    if not walk.images[0]:
        raise ValueError(f"{place} contains no pictures" + "".join(f"; {line}" for line in skipped))
    return walk.images[0], [f"{place}: {line}" for line in skipped]


def pictures_to_predict(source: str | None) -> tuple[list[str], list[str]]:
    """Return the paths of the readable pictures that `predict_source` names, and one line for each kind of file in it
    that is skipped.

    Raises:
        FileNotFoundError: it does not exist.
        ValueError: there is nothing to predict, or none of the files can be read.
    """
    if source is None:
        raise ValueError(
            "there is nothing to predict. Expected a picture or a folder of pictures: --data.predict_source PATH, or "
            "in Python ImageDataModule(..., predict_source=PATH)"
        )
    place = Path(source).expanduser()
    found, remarks = find_pictures(place)
    inspection = inspect_images(found)
    problems, unreadable = inspection.problems, set(inspection.unreadable)
    if not problems:
        return found, remarks
    what = f"{counted(len(problems), 'file')} cannot be predicted: {'; '.join(problems[:5])}"
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    if len(problems) == len(found):
        raise ValueError(f"{place}: {what}{more}. Repair the files, or give others with --data.predict_source")
    return [path for path in found if path not in unreadable], [*remarks, f"{place}: {what}{more}"]
