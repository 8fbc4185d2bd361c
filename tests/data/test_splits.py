"""Splits of a source: validation images are chosen per class and by the seed."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from support.image_data import make_data_module, write_class_folders

from acmix_zoo.data.splits import stratified_split


def test_validation_is_stratified_and_seeded() -> None:
    targets = np.repeat([0, 1, 2, 3], [100, 10, 2, 1])
    train, val = stratified_split(targets, 0.1, seed=0)
    assert np.bincount(targets[val], minlength=4).tolist() == [10, 1, 1, 0]
    assert sorted([*train, *val]) == list(range(113))
    assert np.array_equal(val, stratified_split(targets, 0.1, seed=0)[1])
    assert not np.array_equal(val, stratified_split(targets, 0.1, seed=1)[1])


def test_existing_splits_are_used(tmp_path: Path) -> None:
    for split, count in (("train", 5), ("validation", 3), ("test", 2)):
        write_class_folders(tmp_path, count, split=split)
    assert make_data_module(tmp_path).describe()["splits"] == {"train": 10, "val": 6, "test": 4}


def test_the_validation_split_can_serve_as_the_test_split(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for split, count in (("train", 8), ("validation", 3)):
        write_class_folders(tmp_path, count, split=split)
    data = make_data_module(tmp_path, validation_as_test=True)
    assert data.describe()["splits"] == {"train": 12, "val": 4, "test": 6}
    assert data.describe()["validation_as_test"] and "validation_as_test" not in make_data_module(tmp_path).describe()
    assert data.splits["test"].images is data.source.splits["val"]
    data.setup("fit")
    assert "test is the validation split of the source (data.validation_as_test)" in capsys.readouterr().out


def test_the_validation_split_cannot_replace_a_test_split(tmp_path: Path) -> None:
    for split in ("train", "test"):
        write_class_folders(tmp_path, 4, split=split)
    with pytest.raises(ValueError, match=r"has the splits test, train. Expected a validation split and no test split"):
        make_data_module(tmp_path, validation_as_test=True).setup("fit")


def test_classes_with_one_image_are_not_validated(tmp_path: Path) -> None:
    source = write_class_folders(tmp_path, 1)
    with pytest.raises(ValueError, match=r"too few training images.*Add a val/ folder.* set data.val_fraction to 0"):
        make_data_module(source).setup("fit")
    assert make_data_module(source, val_fraction=0).describe()["splits"] == {"train": 2, "val": 0, "test": 0}
    Image.new("L", (4, 4)).save(source / "b" / "more.png")
    assert make_data_module(source).describe()["splits"] == {"train": 2, "val": 1, "test": 0}
