"""The record of a run states how its validation images were split off, so that its scores can be measured again."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from support.box_data import write_coco_split
from support.image_data import make_data_module, write_class_folders
from support.tasks import write_masked_images
from support.training import make_image_folder

from acmix_zoo.data import ImageDataModule, MaskDataModule
from acmix_zoo.data.boxes.box_module import BoxDataModule
from acmix_zoo.data.compatibility import check_validation

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


def test_a_network_is_not_validated_on_images_that_it_was_trained_on(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "data", 16)

    def card(**kwargs: Any) -> dict[str, Any]:
        return dict(make_data_module(source, **kwargs).card()["dataset"])

    recorded = card()
    check_validation(recorded, card())
    check_validation({**recorded, "name": "other"}, card(seed=1))  # trained on something else
    check_validation({key: value for key, value in recorded.items() if key != "val_split"}, card())  # an older record
    for kwargs in ({"seed": 1}, {"val_fraction": 0.5}):
        with pytest.raises(ValueError, match="may have been trained on some of them"):
            check_validation(recorded, card(**kwargs))
    with pytest.raises(ValueError, match="may have been trained on some of them"):
        check_validation(card(val_fraction=0), recorded)
    shutil.copy(source / "a/3.png", source / "a/3a.png")  # the split is drawn again
    with pytest.raises(ValueError, match=r"trained on data \(24 train, 8 val.* now data \(25 train, 8 val"):
        check_validation(recorded, card())


def test_renamed_images_are_a_warning_because_others_are_chosen(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path / "data", 16)
    recorded = dict(make_data_module(source).card()["dataset"])
    first = sorted((source / "a").iterdir())[0]
    first.rename(first.with_name("zz.png"))
    warning = check_validation(recorded, dict(make_data_module(source).card()["dataset"]))
    assert warning and "The network may have been trained on some of them" in warning
