"""Check that the present data allows a run to be resumed from a checkpoint: same images, classes and batches."""

from __future__ import annotations

import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from acmix_zoo.data.wording import first_few

_NEW_RUN = "choose a different --run.folder for a new run, which may start from the weights with --model.pretrained"


def compare_data(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Compare the images that a checkpoint was trained on with the present ones.

    Args:
        recorded: the value of `ImageDataModule.describe` in the checkpoint.
        current: its present value.

    Returns:
        None if the images are the same. Otherwise a warning that files have changed, which is allowed because a file
        may become unreadable during a run.

    Raises:
        ValueError: this is a different data set, or the number of training or validation images has changed.
    """
    sizes = [_sizes(recorded), _sizes(current)]
    if recorded.get("fingerprint") == current["fingerprint"] and sizes[0] == sizes[1]:
        return None
    before, now = map(_summary, (recorded, current))
    if recorded.get("name") != current["name"] or sizes[0] != sizes[1]:
        raise ValueError(
            f"the checkpoint was trained on {before}, but the data is now {now}. To resume, use the same images. If a "
            "file was lost, put an empty file in its place, which is skipped. Otherwise " + _NEW_RUN
        )
    return f"Warning: image files have changed since the checkpoint, which was trained on {before}. Resuming with {now}"


def check_validation(recorded: Mapping[str, Any], current: Mapping[str, Any]) -> str | None:
    """Check that validation images which are split off the training images are those that the checkpoint left out.

    Args:
        recorded, current: as for `compare_data`.

    Returns:
        A warning if files have changed, because a renamed file changes which images are chosen. Otherwise None.

    Raises:
        ValueError: they are other images of the same data set, so the network may have been trained on some of them.
    """
    if "val_split" not in current or recorded.get("name") != current["name"]:
        return None
    is_split_differently = recorded.get("val_split", current["val_split"]) != current["val_split"]
    if is_split_differently or _sizes(recorded) != _sizes(current):
        before, now = map(_summary, (recorded, current))
        raise ValueError(
            f"the checkpoint was trained on {before}, but the data is now {now}, and its validation images are split "
            "off from train. The network may have been trained on some of them, so its score would be too high. To "
            "measure it on other images, add them as a val/ or test/ split"
        )
    if recorded.get("fingerprint") == current["fingerprint"]:
        return None
    return (
        "Warning: image files have changed since the checkpoint. If training images were renamed or replaced, other "
        "images are now split off for validation. The network may have been trained on some of them, so the score may "
        "be too high"
    )


def _sizes(description: Mapping[str, Any]) -> dict[str, int | None]:
    """Return the numbers of training and validation images of a data set."""
    return {name: (description.get("splits") or {}).get(name) for name in ("train", "val")}


def _summary(description: Mapping[str, Any]) -> str:
    """Return the name of a data set, its numbers of images and its fingerprint in words."""
    sizes = ", ".join(f"{count} {name}" for name, count in (description.get("splits") or {}).items())
    return f"{description.get('name')} ({sizes} images, fingerprint {description.get('fingerprint')})"


def compare_classes(recorded: Sequence[str] | None, current: Sequence[str], data_name: str) -> None:
    """Check that the classes of a checkpoint are those of the data, in the same order.

    Args:
        recorded: the classes of the checkpoint; None if it does not list them.

    Raises:
        ValueError: the names or their order differ. Every score and label would belong to the wrong class.
    """
    if recorded is None:
        return
    before, now = ([unicodedata.normalize("NFC", name) for name in names] for names in (recorded, current))
    if before != now:
        missing, new = sorted(set(before) - set(now)), sorted(set(now) - set(before))
        raise ValueError(
            f"the classes of {data_name} are not those of the checkpoint. Missing: {first_few(missing) or 'none'}; "
            f"new: {first_few(new) or 'none'}. Expected {first_few(before)}, in this order. Rename the class folders, "
            "or set --data.source to the data that the checkpoint was trained on"
        )


def compare_batches(recorded: Mapping[str, int], current: Mapping[str, int]) -> str | None:
    """Compare the batches of a checkpoint with the present ones.

    Args:
        recorded: processes, batch_size and accumulate_grad_batches of the run that wrote the checkpoint.
        current: their present values.

    Returns:
        None if they are the same. Otherwise a message that says what differs, if the run can be resumed nevertheless.

    Raises:
        ValueError: an optimiser step would have a different number of images, although the schedule and the position
            in the epoch are counted in steps.
    """
    if recorded == current:
        return None
    before, now = (" × ".join(f"{value} {name}" for name, value in sizes.items()) for sizes in (recorded, current))
    images, images_now = (sizes["processes"] * sizes["batch_size"] for sizes in (recorded, current))
    accumulated = recorded["accumulate_grad_batches"]
    if images != images_now or accumulated != current["accumulate_grad_batches"]:
        batch_size = images / current["processes"]
        advice = (
            f"Resume with --data.batch_size {batch_size:.0f} --trainer.accumulate_grad_batches {accumulated}"
            if batch_size.is_integer()
            else f"Resume with a number of processes that divides {images} images"
        )
        raise ValueError(
            f"the checkpoint was trained with {before}, but this command has {now}. The schedule and the position in "
            f"the epoch depend on the number of images per step. {advice}, or {_NEW_RUN}"
        )
    return (
        f"The checkpoint was trained with {before}, and this run uses {now}. Images, augmentation and schedule stay "
        "the same, but the weights will not be bit-identical: sums are rounded differently, and mixup, dropout and "
        "batch normalisation depend on which images each process receives"
    )
