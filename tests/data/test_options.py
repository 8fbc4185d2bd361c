"""Options of `ImageDataModule`: impossible values are refused, and the batch size is limited."""

from typing import Any

import pytest

from acmix_zoo.data import ImageDataModule
from acmix_zoo.data.options import limit_batch_size


@pytest.mark.parametrize(
    "wrong",
    [
        {"val_fraction": 1.0},
        {"image_size": 0},
        {"batch_size": 0},
        {"mean": (0.5,)},
        {"std": (1.0, 0.0, 1.0)},
        {"interpolation": "cubic"},
        {"repeats": 0},
        {"max_unreadable": -1},
        {"shift": 1.0},
        {"crop_scale": (0.0, 1.0)},
        {"crop_scale": (0.5, 0.25)},
        {"crop_scale": (0.5, 1.0), "augment": "light"},
        {"mean": (123.675, 116.28, 103.53), "std": (58.395, 57.12, 57.375)},  # of pixel values up to 255
        {"std": (58.395, 57.12, 57.375)},
        {"hflip": 50},
        {"random_erasing": -0.1},
        {"crop_pct": 0},
        {"crop_pct": 87.5},
        {"mixup": -0.2},
        {"cutmix": float("nan")},
        {"num_workers": -1},
        {"augment": "random"},
        {"augment": "v0-m9x-foo"},
    ],
)
def test_impossible_values_are_rejected(wrong: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(wrong))):
        ImageDataModule("digits", **wrong)


@pytest.mark.parametrize("augment", ["lihgt", "strong"])
def test_unknown_augmentation_is_rejected(augment: str) -> None:
    with pytest.raises(ValueError, match=f"augment='{augment}' is unknown. Use none, light, crop, imagenet or"):
        ImageDataModule("digits", augment=augment)


def test_batch_size_is_limited_to_the_share_of_a_process() -> None:
    assert limit_batch_size(8, 8, 1) == (8, "") and limit_batch_size(2, 8, 2) == (2, "")
    size, remark = limit_batch_size(8, 9, 2)
    assert size == 4 and "larger than the 9 training images on 2 processes; using 4" in remark
    assert limit_batch_size(4, 1, 2)[0] == 1
