"""The images of a check: with classes from a data set, without from a folder, or the sample input of the weights."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.image_data import write_class_folders, write_files
from support.weight_folders import SHIPPED

from acmix_zoo.export.check_images import open_check_images, sample_input


def test_classes_of_a_data_set_are_those_of_the_network(tmp_path: Path) -> None:
    """A data set may have fewer classes than the network, in any order."""
    write_class_folders(tmp_path, 8, "ab", "train")
    write_class_folders(tmp_path, 4, "ab", "test")
    images = open_check_images(str(tmp_path), ["c", "b", "a"], limit=6)
    assert images.description == f"the test split of {tmp_path}"
    assert images.targets.tolist() == [2, 2, 2, 1, 1, 1]
    assert len(images.readers) == 6 and len(images.calibration) == 14  # a validation split was taken from train/
    batches = list(images.batches(lambda image: torch.tensor(float(image.getpixel((0, 0))[0]))))  # type: ignore[index]
    assert [batch.targets.tolist() for batch in batches] == [[2, 2, 2, 1, 1, 1]]
    assert batches[0].images.tolist() == [0, 1, 3, 100, 102, 103]  # at equal distances


def test_a_folder_of_images_has_no_classes(tmp_path: Path) -> None:
    write_files(tmp_path / "photos", "a.png", "b.png", "notes.txt", "sub/c.png")
    images = open_check_images(str(tmp_path / "photos"), ["x"], limit=2)
    assert images.targets.tolist() == [-1, -1] and len(images.calibration) == 3
    (array,) = images.calibration_batches(lambda image: torch.zeros(3, 4, 4))
    assert isinstance(array, np.ndarray) and array.shape == (3, 3, 4, 4)
    for name in ("a.png", "?.png", "[b]*"):
        expected = 2 if name == "?.png" else 1
        assert len(open_check_images(str(tmp_path / "photos" / name), ["x"], limit=2).readers) == expected
    write_class_folders(tmp_path / "[1]", 2, "ab")
    assert set(open_check_images(str(tmp_path / "[1]"), ["a", "b"], limit=4).targets.tolist()) == {0, 1}


def test_class_folders_beside_a_stray_image_have_classes(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 4, "ab")
    write_files(tmp_path, "cover.png")
    assert set(open_check_images(str(tmp_path), ["a", "b"], limit=4).targets.tolist()) == {0, 1}


def test_unknown_classes_are_rejected(tmp_path: Path) -> None:
    write_class_folders(tmp_path, 2, "abc")
    with pytest.raises(ValueError, match=r"has classes that the network does not know: b, c\. Expected its own .*a, d"):
        open_check_images(str(tmp_path), ["a", "d"], limit=2)


def test_the_sample_input_of_the_weights_or_noise(tmp_path: Path) -> None:
    description, batch = sample_input(SHIPPED, (3, 32, 32))
    assert description == f"the {len(batch.images)} sample images of the weights" and batch.images.shape[1:] == (
        3,
        32,
        32,
    )
    for folder in (None, tmp_path):
        description, batch = sample_input(folder, (3, 8, 8))
        assert "random numbers" in description and batch.images.shape == (4, 3, 8, 8)
    assert set(batch.targets.tolist()) == {-1}
