"""`export_folder`: a random sample of a data set as class folders."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import export_folder, open_source
from acmix_zoo.data.sources.folder_source import FolderSource


def test_the_sample_is_balanced_and_reproducible(tmp_path: Path) -> None:
    root = export_folder("digits", tmp_path / "digits", per_class={"train": 3, "test": 5}, seed=1)
    source = FolderSource(root)
    assert {split: len(images) for split, images in source.splits.items()} == {"train": 30, "test": 50}
    assert source.class_names == tuple("0123456789")
    names = [path.name for path in root.glob("*/*/*.png")]  # the name is the index in the source
    assert len(set(names)) == 80, "an image is in both splits"
    original = open_source("digits").splits["train"]
    for path in list(root.glob("*/*/*.png"))[::7]:
        assert int(path.parent.name) == original.targets[int(path.stem)]
        assert np.array_equal(np.asarray(Image.open(path)), original.array[int(path.stem), 0])  # type: ignore[attr-defined]
    again = export_folder("digits", tmp_path / "again", per_class={"train": 3, "test": 5}, seed=1)
    assert sorted(path.name for path in again.glob("*/*/*.png")) == sorted(names)
    with pytest.raises(FileExistsError, match="Remove it"):
        export_folder("digits", root, per_class={"train": 1})


def test_too_few_images_leave_nothing_behind(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"class '0' of digits has 178 images in train. Expected at least 1005"):
        export_folder("digits", tmp_path / "digits", per_class={"train": 5, "test": 1000})
    assert list(tmp_path.iterdir()) == []


def test_class_names_become_valid_file_names(tmp_path: Path, fashion_mnist: str) -> None:
    root = export_folder(fashion_mnist, tmp_path / "f", per_class={"test": 1, "train": 1})
    assert (root / "train" / "T-shirt-top").is_dir() and len(list(root.glob("test/*/*.png"))) == 10
