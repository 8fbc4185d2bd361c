"""The record of a run states how its validation images were split off, so that its scores can be measured again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from support.box_data import write_coco_split
from support.tasks import write_masked_images
from support.training import make_image_folder

from acmix_zoo.data import ImageDataModule, MaskDataModule
from acmix_zoo.data.boxes.box_module import BoxDataModule

CFG = {"input_size": (3, 32, 32), "mean": (0.5,) * 3, "std": (0.5,) * 3, "interpolation": "bilinear", "crop_pct": 1.0}
OPTIONS = {"image_size": 48, "max_size": 64, "detector": "fcos"}


def write_photos(folder: Path) -> Path:
    make_image_folder(folder / "train", per_class=10)
    return folder


def write_masks(folder: Path) -> Path:
    write_masked_images(folder, counts=(20, 1, 1))
    for split in ("images/val", "masks/val"):
        shutil.rmtree(folder / split)
    return folder


def write_boxes(folder: Path) -> Path:
    write_coco_split(folder, "train2017", 20)
    return folder


@pytest.mark.parametrize(
    ("module", "write"),
    [(ImageDataModule, write_photos), (MaskDataModule, write_masks), (BoxDataModule, write_boxes)],
    ids=["images", "masks", "boxes"],
)
def test_a_record_gives_the_validation_images_again(module: Any, write: Callable[[Path], Path], tmp_path: Path) -> None:
    source = str(write(tmp_path / "data"))
    data = module(source, val_fraction=0.4, seed=3)
    cfg = {**CFG, "label_names": list(data.class_names)}
    config = {"pretrained_cfg": cfg, "task_options": OPTIONS, "acmix_zoo": {"dataset": data.describe()}}
    again = module.for_weights(source, config)
    expected, found = (each.loaders.splits["val"].indices.tolist() for each in (data, again))
    assert found == expected != module(source, val_fraction=0.4, seed=4).loaders.splits["val"].indices.tolist()


def test_given_validation_images_need_no_record(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make_image_folder(tmp_path / split, per_class=4)
    assert "val_split" not in ImageDataModule(str(tmp_path)).describe()


def test_validation_images_are_split_off_if_the_given_ones_are_the_test_set(tmp_path: Path) -> None:
    for split in ("train", "val"):
        make_image_folder(tmp_path / split, per_class=10)
    described = ImageDataModule(str(tmp_path), validation_as_test=True, seed=5).describe()
    assert described["val_split"] == {"val_fraction": 0.1, "seed": 5}
