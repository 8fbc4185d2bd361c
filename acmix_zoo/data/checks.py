"""What `ImageDataModule` says of options and files that will not do."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np

from acmix_zoo.data.images import bad_images, find_images
from acmix_zoo.data.sources import Images

AUGMENTS = ("none", "light", "imagenet")


class UnusableImages(ValueError):
    """A look at the files before they are used found some that are no images; in all processes alike."""


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


def check_images(parts: Mapping[str, tuple[Images, np.ndarray]]) -> None:
    """
    Args:
        parts: for each split the pictures, and the indices of its own among them.

    Raises:
        UnusableImages: some cannot be read, as far as a quick look tells; the message names them.
    """
    said = []
    for name, (images, indices) in parts.items():
        if problems := images.problems(indices.tolist()):
            shown = "\n  ".join(problems[:5])
            more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
            what = f"{len(problems)} of {len(indices)} {name} images cannot be used; repair or remove them"
            said.append(f"{what}:\n  {shown}{more}")
    if said:
        raise UnusableImages("\n".join(said))


def pictures_to_predict(source: str | None) -> list[str]:
    """Paths of the pictures that `predict_source` names: itself, or those in it.

    Raises:
        FileNotFoundError: it does not exist. ValueError: nothing to predict, or unreadable files (named).
    """
    if source is None:
        raise ValueError("nothing to predict: set predict_source to a picture or a folder of pictures")
    place = Path(source).expanduser()
    if not place.exists():
        raise FileNotFoundError(f"predict_source {place} does not exist")
    found = find_images(place) if place.is_dir() else [str(place)]
    if not found:
        raise ValueError(f"predict_source {place} holds no pictures")
    if problems := bad_images(found):
        raise ValueError(f"{len(problems)} files cannot be predicted; repair or remove them: {'; '.join(problems[:5])}")
    return found
