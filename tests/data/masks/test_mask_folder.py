"""Folders of images and masks: layouts, the lists of Pascal VOC, and images or masks without a partner."""

import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")

from support.mask_data import make_data, make_folder, sizes

from acmix_zoo.data.masks.mask_module import MaskDataModule


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_splits_may_be_above_or_below_the_kinds(folder: Path) -> None:
    data = make_data(folder)
    assert sizes(data) == {"train": 4, "val": 2, "test": 1} and data.class_names == ("ground", "grass", "water")
    other = folder.parent / "other"
    for kind, name in (("images", "images"), ("masks", "annotations")):
        for split, folder_name in (("train", "training"), ("val", "validation"), ("test", "test")):
            shutil.copytree(folder / kind / split, other / folder_name / name)
    shutil.copy(folder / "classes.txt", other)
    assert sizes(make_data(other)) == sizes(data)


def test_without_splits_validation_images_are_split_off(folder: Path) -> None:
    flat = folder.parent / "flat"
    shutil.copytree(folder / "images/train", flat / "images")
    for path in (folder / "masks/train").iterdir():
        (flat / "masks").mkdir(exist_ok=True)
        shutil.copy(path, flat / "masks" / f"{path.stem}_mask.png")
    data = make_data(flat, class_names=["a", "b", "c"], val_fraction=0.25)
    assert sizes(data) == {"train": 3, "val": 1} and data.class_names == ("a", "b", "c")


def make_voc_folder(folder: Path, lists: dict[str, str]) -> Path:
    """Move the training images to the layout of Pascal VOC, and write ImageSets/Segmentation/."""
    root = folder.parent / "voc"
    shutil.copytree(folder / "images/train", root / "JPEGImages")
    shutil.copytree(folder / "masks/train", root / "SegmentationClass")
    (root / "Annotations").mkdir()
    shutil.copy(folder / "classes.txt", root)
    (root / "ImageSets/Segmentation").mkdir(parents=True)
    for name, content in lists.items():
        (root / f"ImageSets/Segmentation/{name}.txt").write_text(content, encoding="utf-8-sig")
    return root


def image_names(data: MaskDataModule) -> dict[str, list[str]]:
    return {
        name: [Path(split.images.describe(i)).stem for i in split.indices.tolist()]
        for name, split in data.splits.items()
    }


def test_the_lists_of_pascal_voc_are_the_splits(folder: Path) -> None:
    root = make_voc_folder(folder, {"train": "3\n0\n", "val": "1\nnone\n", "test": "", "trainval": "0\n1\n3\n"})
    data = make_data(root)
    assert image_names(data) == {"train": ["0", "3"], "val": ["1"]}
    assert data.source.remarks == [
        "left out the split test, because none of its images has a mask",
        "skipped 1 name in ImageSets/Segmentation/val.txt without an image: none",
    ]
    with pytest.raises(ValueError, match=r"Add the names of its images as ImageSets/Segmentation/test\.txt"):
        data.test_dataloader()


def test_lists_may_have_extensions(folder: Path) -> None:
    root = make_voc_folder(folder, {"train": "3.png\n0.png\n", "val": "1.png\n"})
    assert image_names(make_data(root)) == {"train": ["0", "3"], "val": ["1"]}
    (root / "ImageSets/Segmentation/train.txt").write_text("a/3\na/0\n")
    with pytest.raises(ValueError, match=r"no line of the list of training images .* a/3, a/0, and JPEGImages with 0"):
        make_data(root)


def test_validation_images_of_pascal_voc_are_not_trained_on(folder: Path) -> None:
    root = make_voc_folder(folder, {"trainval": "0\n1\n3\n", "val": "1\n"})
    assert image_names(make_data(root)) == {"train": ["0", "3"], "val": ["1"]}
    (root / "ImageSets/Segmentation/val.txt").write_text("1.png\n")
    assert image_names(make_data(root)) == {"train": ["0", "3"], "val": ["1"]}
    (root / "ImageSets/Segmentation/trainval.txt").unlink()
    with pytest.raises(ValueError, match=r"Segmentation has no train\.txt or trainval\.txt, only val"):
        make_data(root)


def test_validation_masks_as_test_are_stated(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "images/test")
    make_data(folder, validation_as_test=True, val_fraction=0.25).setup("fit")
    assert "test is the validation split of the source (data.validation_as_test)" in capsys.readouterr().out


def test_splits_without_masks_are_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shutil.rmtree(folder / "masks/val")
    shutil.rmtree(folder / "images/test")
    make_data(folder, val_fraction=0.25).setup("fit")
    out = capsys.readouterr().out
    assert "left out the split val, which has no folder of masks" in out and "val was split off from train" in out
    assert "left out the split test, which has no folder of images" in out


def test_images_outside_the_splits_are_counted(folder: Path) -> None:
    for kind in ("images", "masks"):
        shutil.copy(folder / kind / "train/0.png", folder / kind)
    data = make_data(folder)
    assert sizes(data)["train"] == 4
    assert data.source.remarks == [f"skipped 1 image directly in {folder}/images, outside the splits"]


def test_images_without_a_mask_are_counted_and_named(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "masks/train/2.png").unlink()
    data = make_data(folder)
    data.setup("fit")
    assert sizes(data)["train"] == 3
    out = capsys.readouterr().out
    assert "data: shapes, 3 classes; images with masks: train 3, val 2, test 1" in out
    assert "skipped 1 train image without a mask: images/train/2.png" in out


def test_masks_without_an_image_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "images/train/3.png").unlink()
    make_data(folder).setup("fit")
    assert "skipped 1 train mask without an image" in capsys.readouterr().out


def test_a_mask_belongs_to_one_image_and_an_image_has_one_mask(folder: Path) -> None:
    mask, image = folder / "masks/train/0.png", folder / "images/train/0.png"
    for path, message in (
        (mask, r"0\.png has the masks .*0\.bmp and .*0\.png"),
        (image, "so both would use the mask "),
    ):
        copy = path.with_suffix(".bmp")
        Image.open(path).save(copy)
        with pytest.raises(ValueError, match=message):
            make_data(folder).loaders.sizes()
        copy.unlink()
    mask.rename(mask.with_name("0_L.png"))  # that of another image now, which leaves this one without a mask
    shutil.copy(image, image.with_name("0_L.png"))
    data = make_data(folder)
    assert sizes(data)["train"] == 4 and "skipped 1 train image without a mask: " in str(data.loaders.source.remarks)


def test_the_orientation_of_a_mask_is_applied_as_that_of_its_image(folder: Path) -> None:
    """A tool may copy the tags of a photograph to its mask."""
    tags = Image.Exif()
    tags[0x0112] = 6  # turned by 90 degrees
    before = make_data(folder).splits["train"].images.pair(0)
    for kind in ("images", "masks"):
        path = folder / kind / "train/0.png"
        with Image.open(path) as image:
            image.save(path, exif=tags)
    turned = make_data(folder).splits["train"].images.pair(0)
    assert (np.asarray(turned.image) == np.rot90(np.asarray(before.image), -1)).all()
    assert (turned.mask == np.rot90(before.mask, -1)).all()
