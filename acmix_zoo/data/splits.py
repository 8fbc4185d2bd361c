"""The training, validation and test images of a source, and the check that they are readable."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np

from acmix_zoo.data.inspection import Inspection
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images


class Split(NamedTuple):
    """The images of one split.

    Attributes:
        images: images, some or all of which belong to the split.
        indices: (N,) int64, the sorted numbers of those that do.
    """

    images: Images
    indices: np.ndarray

    @property
    def size(self) -> int:
        """Number of images of the split. (`len` counts the two fields.)"""
        return len(self.indices)

    @property
    def targets(self) -> np.ndarray:
        """(N,) int64, the classes of the images."""
        targets: np.ndarray = self.images.targets[self.indices]
        return targets


class UnusableImages(ValueError):
    """Some files that a run would use are not readable images. This is raised before the run, in every process."""


DEFAULT_VAL_FRACTION = 0.1
"""Fraction of each class used for validation if the source has no validation split."""


def split_source(
    source: IndexedSource,
    val_fraction: float = DEFAULT_VAL_FRACTION,
    seed: int = 0,
    validation_as_test: bool = False,
) -> dict[str, Split]:
    """Return each existing split: "train", "val" and "test". Images without a class (-1) belong to none.

    Args:
        source: the source.
        val_fraction: fraction of each class used for validation if the source has no validation split; 0 for none.
        seed: seed for choosing the validation images.
        validation_as_test: use the source's validation split as the test split.

    Raises:
        ValueError: no class has two images, or `validation_as_test` is set for a source that has a test split or no
            validation split.
    """
    splits = {name: Split(images, np.flatnonzero(images.targets >= 0)) for name, images in source.splits.items()}
    if validation_as_test:
        if "val" not in splits or "test" in splits:
            raise ValueError(
                f"validation_as_test is set, but {source.name} has the splits {', '.join(sorted(splits))}. Expected a "
                "validation split and no test split. Set data.validation_as_test to false"
            )
        splits["test"] = splits.pop("val")
    if "val" not in splits and val_fraction > 0:
        whole = splits["train"]
        try:
            train, val = stratified_split(whole.targets, val_fraction, seed)
        except ValueError as error:
            advice = source.missing_split_advice("val")
            raise ValueError(f"{source.name}: {error}. {advice}, or set data.val_fraction to 0") from None
        splits["train"], splits["val"] = (Split(whole.images, whole.indices[part]) for part in (train, val))
    return splits


def is_val_split_off(source: IndexedSource, splits: Mapping[str, Split]) -> bool:
    """Return whether the validation images were split off the training images, given the result of `split_source`."""
    uses_val_as_test = "test" in splits and "test" not in source.splits
    return "val" in splits and ("val" not in source.splits or uses_val_as_test)


def stratified_split(targets: np.ndarray, fraction: float, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Choose validation images at random, the same fraction of each class.

    A class with two or more images has at least one validation image, and every class has a training image.

    Args:
        targets: (N,) int64, the classes of all images.
        fraction: fraction of each class used for validation; the count is rounded.
        seed: seed for the choice.

    Returns:
        The sorted indices of the training images and of the validation images.

    Raises:
        ValueError: no class has two images.
    """
    generator = np.random.default_rng(seed)
    chosen: list[np.ndarray] = []
    for label in np.unique(targets):
        members = generator.permutation(np.flatnonzero(targets == label))
        count = min(max(1, round(len(members) * fraction)), len(members) - 1)
        chosen.append(members[:count])
    val = np.sort(np.concatenate([np.empty(0, np.int64), *chosen]))
    if not len(val):
        raise ValueError(
            "there are too few training images (at most one per class) to split off some of them for validation"
        )
    return np.setdiff1d(np.arange(len(targets)), val), val


def inspect_splits(splits: Mapping[str, Split], thorough: bool = False) -> dict[str, Inspection]:
    """Check the images of each split for unreadable ones.

    Args:
        thorough: decode every image of the test split, because all of them have to be readable.
    """
    return {
        name: split.images.inspect(split.indices.tolist(), thorough and name == "test")
        for name, split in splits.items()
    }


def check_readable(inspections: Mapping[str, Inspection]) -> None:
    """Check that all images are readable, so that a run does not fail on one after days of training.

    Raises:
        UnusableImages: some images cannot be read. The message lists them.
    """
    messages = [unreadable_message(name, found) for name, found in inspections.items() if found.problems]
    if messages:
        raise UnusableImages("\n".join(messages))


def unreadable_message(split: str, inspection: Inspection) -> str:
    """Return a message that lists the first unreadable images of a split."""
    problems = inspection.problems
    listed = "\n  ".join(problems[:5])
    more = f"\n  and {len(problems) - 5} more" if len(problems) > 5 else ""
    return (
        f"{len(problems)} of {inspection.count} {split} images cannot be used. Repair or remove them:\n  {listed}{more}"
    )
