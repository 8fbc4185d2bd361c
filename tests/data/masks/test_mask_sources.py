"""Images and masks: tables, unusable masks, unknown values and class lists."""

import json
import re
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")

from support.mask_data import make_data, make_folder, sizes

from acmix_zoo.data.masks.mask_module import MaskDataModule
from acmix_zoo.data.splits import UnusableImages


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return make_folder(tmp_path)


def test_splits_without_a_labelled_pixel_are_not_used(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """As test splits are often published. They have no score, and a run would fail once it is trained."""
    for path in [*(folder / "masks/val").iterdir(), *(folder / "masks/test").iterdir()]:
        Image.fromarray(np.full((12, 16), 255, np.uint8)).save(path)
    data = make_data(folder, val_fraction=0.25)
    data.setup("fit")
    assert sizes(data) == {"train": 3, "val": 1}
    lines = capsys.readouterr().out.splitlines()
    assert {f"  {name} is not used, because no pixel of its masks has a class" for name in ("val", "test")} <= {*lines}
    with pytest.raises(ValueError, match=r"has no test split\. No pixel of its test masks has a class"):
        data.test_dataloader()
    (folder / "masks/val/0.png").write_bytes(b"broken")  # which is an error of its own
    assert sizes(make_data(folder))["val"] == 2


def test_unusable_masks_are_counted_and_named_before_the_first_step(folder: Path) -> None:
    Image.new("L", (5, 6)).save(folder / "masks/train/0.png")
    Image.fromarray(np.full((12, 16), 9, np.uint8)).save(folder / "masks/train/1.png")
    for kind in ("images", "masks"):  # one problem, not two
        (folder / kind / "val/0.png").write_bytes(b"broken")
    with pytest.raises(UnusableImages) as error:
        make_data(folder).setup("fit")
    text = str(error.value)
    assert "2 of 4 train images cannot be used" in text and "1 of 2 val images cannot be used" in text
    assert "train/0.png has 5 × 6 pixels, but the image has 16 × 12" in text
    assert "train/1.png has pixels of the value 9. Expected 0 to 2 for the 3 classes" in text


def test_pixels_per_class_are_shown(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (folder / "classes.txt").write_text("ground\ngrass\nwater\nice\n")
    make_data(folder).setup("fit")
    out = capsys.readouterr().out
    assert "no training mask contains ice" in out
    shares = [float(line.split()[1]) for line in out.splitlines() if line.endswith(" %")]
    assert len(shares) == 4 and sum(shares) == pytest.approx(100, abs=0.02)


def write_binary_masks(folder: Path) -> None:
    for path in (folder / "masks").glob("*/*.png"):
        Image.fromarray(np.repeat(np.array([[0, 255]], np.uint8), 12, 0).repeat(8, 1)).save(path)


def test_a_class_whose_value_is_ignored_by_default_is_an_error(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Binary masks often have the values 0 and 255, and 255 means no class elsewhere."""
    write_binary_masks(folder)
    (folder / "classes.txt").write_text("ground\nhouse\n")
    with pytest.raises(ValueError, match=r"no training mask contains house, but 50\.00 % of the pixels") as error:
        make_data(folder).setup("fit")
    lines = re.findall("'(.+?)'", str(error.value))
    assert lines == ["0 0 0 ground", "255 255 255 house"]
    (folder / "classes.txt").write_text("\n".join(lines))
    data = make_data(folder)
    data.setup("fit")
    assert "house   50.00 %" in capsys.readouterr().out
    assert set(data.splits["train"].images.mask(0).ravel().tolist()) == {0, 1}  # type: ignore[attr-defined]


def test_a_class_that_may_be_ignored_by_default_is_a_remark(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    Image.fromarray(np.full((12, 16), 255, np.uint8)).save(folder / "masks/train/0.png")
    make_data(folder).setup("fit")
    assert "no training mask" not in capsys.readouterr().out
    (folder / "classes.txt").write_text("ground\ngrass\nwater\nice\n")
    make_data(folder).setup("fit")
    out = capsys.readouterr().out
    assert (
        "no training mask contains ice, but" in out and "% of the pixels have the value 255, which stands for no" in out
    )
    make_data(folder, ignore_values=[77, 255]).setup("fit")  # the user has thought about it
    assert "no training mask contains ice\n" in capsys.readouterr().out


def test_validation_masks_are_not_counted_as_training_masks(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Validation images that are split off come from the same folder."""
    shutil.rmtree(folder / "masks/val")
    data = make_data(folder, val_fraction=0.25)
    for index in data.splits["val"].indices.tolist():
        Image.fromarray(np.full((12, 16), 2, np.uint8)).save(folder / f"masks/train/{index}.png")
    for index in data.splits["train"].indices.tolist():
        Image.fromarray(np.zeros((12, 16), np.uint8)).save(folder / f"masks/train/{index}.png")
    data.setup("fit")
    out = capsys.readouterr().out
    assert "no training mask contains grass, water" in out and "ground  100.00 %" in out
    assert "val was split off from train" in out


def test_validation_masks_that_were_split_off_need_a_labelled_pixel(folder: Path) -> None:
    """Otherwise there is no score, and no best epoch. Another seed chooses other images."""
    shutil.rmtree(folder / "masks/val")
    for index in make_data(folder, val_fraction=0.25).splits["val"].indices.tolist():
        Image.fromarray(np.full((12, 16), 255, np.uint8)).save(folder / f"masks/train/{index}.png")
    with pytest.raises(ValueError, match=r"no pixel of the 1 validation mask split off .* --data\.seed"):
        make_data(folder, val_fraction=0.25).setup("fit")
    data = make_data(folder, val_fraction=0.5)
    data.setup("fit")
    assert sizes(data)["val"] == 2


@pytest.mark.parametrize("list_folder", ["shapes", "."])
def test_weights_find_the_colours_of_their_classes(folder: Path, list_folder: str) -> None:
    """A record contains the classes and their colours, because the class list may be outside of the data set."""
    (folder / "classes.txt").unlink()
    class_list = folder.parent / list_folder / "classes.txt"
    class_list.write_text("0 0 0 ground\n10 20 30 grass\n40 50 60 water\n255 255 255 void\n")
    palette = np.array([[0, 0, 0], [10, 20, 30], [40, 50, 60], *[[255] * 3] * 253], np.uint8)
    for path in (folder / "masks").glob("*/*.png"):
        with Image.open(path) as mask:
            Image.fromarray(palette[np.asarray(mask)]).save(path)
    data = make_data(folder, classes_file=str(class_list))
    config = {
        "pretrained_cfg": {**data.preprocessing(), "label_names": list(data.class_names)},
        "acmix_zoo": {"dataset": json.loads(json.dumps(data.describe()))},
    }
    again = MaskDataModule.for_weights(str(folder), config)
    (own, *_), (expected, *_) = again.test_dataloader(), data.test_dataloader()
    assert torch.equal(own.masks, expected.masks) and own.masks.unique().tolist() == [0, 1, 2, 255]
    config["acmix_zoo"]["dataset"]["mask_colours"]["colours"] = [[1, 1, 1], [2, 2, 2], [3, 3, 3]]  # of another data set
    (folder / "classes.txt").write_text("0 0 0 ground\n10 20 30 grass\n40 50 60 water\n255 255 255 void\n")
    again = MaskDataModule.for_weights(str(folder), config)
    assert torch.equal(next(iter(again.test_dataloader())).masks, expected.masks)


def test_a_folder_without_masks_or_classes_is_rejected(folder: Path, tmp_path: Path) -> None:
    (folder / "classes.txt").unlink()
    with pytest.raises(ValueError, match="does not say which classes its masks contain"):
        make_data(folder)
    with pytest.raises(FileNotFoundError, match=r"classes_file .*none\.txt does not exist"):
        make_data(folder, classes_file=str(tmp_path / "none.txt"))
    shutil.rmtree(folder / "masks")
    with pytest.raises(
        ValueError, match=r"no images with masks for training\. Expected images/train/1\.jpg with masks"
    ):
        make_data(folder, class_names=["a", "b"])
    with pytest.raises(FileNotFoundError, match="data set 'missing' does not exist"):
        MaskDataModule("missing", class_names=["a", "b"])


def test_a_parquet_file_with_two_image_columns_is_read(folder: Path) -> None:
    datasets = pytest.importorskip("datasets")
    table = folder.parent / "table"
    table.mkdir()
    for split, name in (("train", "train"), ("val", "validation")):
        columns = {
            column: [{"bytes": p.read_bytes(), "path": None} for p in sorted((folder / kind / split).iterdir())]
            for column, kind in (("image", "images"), ("annotation", "masks"))
        }
        features = datasets.Features({"image": datasets.Image(), "annotation": datasets.Image()})
        datasets.Dataset.from_dict(columns, features=features).to_parquet(table / f"{name}.parquet")
    data = make_data(table, class_names=["ground", "grass", "water"])
    data.setup("fit")
    assert sizes(data) == {"train": 4, "val": 2}
    own, expected = (d.splits["val"].images.pair(1) for d in (data, make_data(folder)))  # type: ignore[attr-defined]
    assert np.array_equal(own.mask, expected.mask)
    assert np.array_equal(np.asarray(own.image), np.asarray(expected.image))
    with pytest.raises(ValueError, match=r"has no test split\. Add a test split"):
        data.test_dataloader()
    with pytest.raises(ValueError, match="no image column 'depth'"):
        make_data(table, class_names=["a", "b"], mask_column="depth")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"crop_size": (0, 8)}, r"crop_size=\[0, 8\] is not a size"),
        ({"resize": (9, 8)}, r"resize=\[9, 8\] is not a range"),
        ({"eval_resize": 0}, "eval_resize=0 is too small"),
        ({"val_fraction": 1.0}, r"val_fraction=1\.0 is not a fraction"),
        ({"max_unreadable": -1}, "max_unreadable=-1 is negative"),
    ],
    ids=str,
)
def test_impossible_options_are_rejected(folder: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_data(folder, **options)
