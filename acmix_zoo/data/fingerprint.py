"""Whether a run can go on from another run's state: the images, and what a place in an epoch is counted in."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import Any


def compare_data(theirs: dict[str, Any], ours: dict[str, Any]) -> str | None:
    """Compare what `ImageDataModule.describe` said of the images of a checkpoint with this run's.

    Returns:
        None when they are the same; else, in words, that files have changed: one may break in the time of a run.

    Raises:
        ValueError: they are others, or not as many to learn from.
    """
    counts = [{name: (d.get("splits") or {}).get(name) for name in ("train", "val")} for d in (theirs, ours)]
    if theirs.get("fingerprint") == ours["fingerprint"] and counts[0] == counts[1]:
        return None
    was, now = map(_words, (theirs, ours))
    if theirs.get("name") != ours["name"] or counts[0] != counts[1]:
        raise ValueError(
            f"the checkpoint is of a run on {was}, this one has {now}. Give the same images to go on (for one that was "
            "lost, a file of its name, even an empty one, which is left out); for others take another --run.folder, "
            "and start from its weights with --model.pretrained if that is meant"
        )
    return f"FILES HAVE CHANGED since the checkpoint, of a run on {was}; here is {now}. The run goes on with these."


def _words(description: dict[str, Any]) -> str:
    """Return the name of the images, their numbers and their fingerprint in words."""
    counts = ", ".join(f"{count} {name}" for name, count in (description.get("splits") or {}).items())
    return f"{description.get('name')} ({counts} images, fingerprint {description.get('fingerprint')})"


def compare_classes(theirs: Sequence[str] | None, ours: Sequence[str], source: str) -> None:
    """Check that the classes of a checkpoint are those of the data, in the same order.

    Raises:
        ValueError: other names, or another order. Every score and label would be of the wrong class.
    """
    if theirs is None:
        return
    was, now = ([unicodedata.normalize("NFC", name) for name in names] for names in (theirs, ours))
    if was != now:
        missing, added = (sorted(set(a) - set(b)) for a, b in ((was, now), (now, was)))
        raise ValueError(
            f"{source} has other classes than the checkpoint. Missing: {_some(missing)}; new: {_some(added)}. "
            f"Expected {_some(was)}, in this order. Rename the class folders, or give the "
            "data that the checkpoint was trained on with --data.source"
        )


def _some(names: Sequence[str]) -> str:
    return ", ".join(names[:5]) + (", …" if len(names) > 5 else "") if names else "none"


def compare_sizes(theirs: dict[str, int], ours: dict[str, int]) -> str | None:
    """Compare {processes, batch_size, accumulate_grad_batches} of a checkpoint with those of the run that reads it.

    Returns:
        None when they are the same; else what changes, in words, when the run can go on all the same.

    Raises:
        ValueError: other steps: the schedule and the place in the epoch count them.
    """
    if theirs == ours:
        return None
    was, now = (" × ".join(f"{value} {name}" for name, value in sizes.items()) for sizes in (theirs, ours))
    images = [sizes["processes"] * sizes["batch_size"] for sizes in (theirs, ours)]
    if images[0] != images[1] or theirs["accumulate_grad_batches"] != ours["accumulate_grad_batches"]:
        fits = images[0] / ours["processes"]
        way = (
            f"Go on with --data.batch_size {fits:.0f} --trainer.accumulate_grad_batches "
            f"{theirs['accumulate_grad_batches']}"
            if fits.is_integer()
            else f"Go on with a number of processes that divides {images[0]} images"
        )
        raise ValueError(
            f"the checkpoint is of a run with {was}, this one has {now}: its place in the epoch and in the schedule "
            f"would be others. {way}, or begin a new run from its weights with --model.pretrained"
        )
    return (
        f"The checkpoint is of a run with {was}, this one has {now}. Images, their augmentation and the schedule stay "
        "the same; sums are rounded otherwise, and mixing, dropout and batch norms, which see the images of one "
        "process, differ: the weights will not be the same to the bit."
    )
