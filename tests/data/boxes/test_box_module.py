"""The data module of detection: summary, batches, resuming, and exact evaluation."""

import json
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from PIL import Image
from support.box_data import write_coco, write_coco_split, write_voc
from support.image_data import QUIET
from torch import Tensor, nn

from acmix_zoo.data.boxes.box_dataset import BoxBatch
from acmix_zoo.data.boxes.box_module import BoxDataModule

BOX = (11, 6, 40, 30)


def make(folder: Path, **options: Any) -> BoxDataModule:
    return BoxDataModule(str(folder), **{"image_size": 48, "max_size": 64, "batch_size": 2, **options})


class Recorder(L.LightningModule):
    """Trains one number and records the batches: for each image the sum of its pixels, its size and its boxes."""

    def __init__(self, stop_at: int = -1) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(()))
        self.seen: list[Any] = []
        self.evaluated: list[int] = []
        self.stop_at = stop_at

    def training_step(self, batch: BoxBatch, index: int) -> Tensor:
        if len(self.seen) == self.stop_at:
            raise KeyboardInterrupt
        assert all(image.dtype == torch.float32 for image in batch.images)
        sums = [(float(image.double().sum()), tuple(image.shape)) for image in batch.images]
        self.seen.append((sums, [target["boxes"].tolist() for target in batch.targets]))
        return (self.weight - batch.images[0].mean()) ** 2

    def validation_step(self, batch: BoxBatch, index: int) -> None:
        self.evaluated += [int(target["image"]) for target in batch.targets]

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), 0.1)


def fit(data: BoxDataModule, model: Recorder, folder: Path, resume: Path | None = None) -> None:
    every_step = ModelCheckpoint(folder, save_last=True, every_n_train_steps=1, save_top_k=1)
    trainer = L.Trainer(max_epochs=3, callbacks=[every_step], **QUIET)
    try:
        trainer.fit(model, data, ckpt_path=resume, weights_only=True)
    except SystemExit:
        assert model.stop_at >= 0


def test_a_resumed_run_gets_the_same_batches(tmp_path: Path) -> None:
    source = write_coco(tmp_path / "data", train=6, val=3)
    options: dict[str, Any] = {"multi_scale": [32, 40, 48]}
    uninterrupted, stopped, resumed = Recorder(), Recorder(stop_at=4), Recorder()
    fit(make(source, **options), uninterrupted, tmp_path / "uninterrupted")
    fit(make(source, **options), stopped, tmp_path / "stopped")
    fit(make(source, **options), resumed, tmp_path / "resumed", tmp_path / "stopped/last.ckpt")
    assert len(uninterrupted.seen) == 9 and uninterrupted.evaluated == [0, 1, 2] * 3
    assert stopped.seen + resumed.seen == uninterrupted.seen
    sizes = {shape[1] for sums, _ in uninterrupted.seen for _, shape in sums}
    assert sizes == {32, 40, 48}


def test_the_summary_names_what_cannot_be_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    splits = {
        "train": [[("red", BOX), ("red", (5, 5, 5, 5))], [("green", BOX)], []],
        "val": [[("red", (70, 5, 90, 20)), ("blue", BOX)], [("red", BOX)]],
        "test": [[("green", (5, 5, 90, 20))]],
    }
    make(write_voc(tmp_path / "cells", splits)).setup("fit")
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "data: cells, 2 classes; images: train 3, val 2, test 1; boxes: train 2, val 1, test 1"
    assert lines[1:4] == [
        "  boxes of class    train      val     test",
        "  green                 1        0        1",
        "  red                   1        1        0",
    ]
    assert lines[4] == (
        "  boxes: left out 1 of unknown classes blue (in val_0.png), 1 without area (in train_0.png), "
        "1 outside their image (in val_0.png); 1 clipped to their image (in test_0.png)"
    )
    assert lines[5] == "  train 1 image without boxes; val 1 image without boxes"


def test_splits_without_boxes_are_not_used(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A split of background alone would have a mean average precision of zero, whatever the detector finds."""
    splits: dict[str, Any] = {"train": [[("red", BOX)]] * 4 + [[]] * 16, "val": [[], []], "test": [[("blue", BOX)]]}
    data = make(write_voc(tmp_path / "cells", splits))
    data.setup("fit")
    assert data.loaders.sizes() == {"train": 17, "val": 3}
    lines = capsys.readouterr().out.splitlines()
    assert "  val was split off from train (data.val_fraction), because there is no usable validation split" in lines
    assert {f"  {split} is not used, because it has no usable boxes" for split in ("val", "test")} <= {*lines}
    assert "  red                   3        1" in lines  # at least one, although few images have boxes
    with pytest.raises(ValueError, match=r"cells has no test split\. Its test images have no usable boxes"):
        data.test_dataloader()


def test_training_needs_boxes_in_pixels(tmp_path: Path) -> None:
    folder = write_coco_split(tmp_path, "train2017", 2)
    path = folder / "annotations/instances_train2017.json"
    content = json.loads(path.read_text())
    for annotation in content["annotations"]:
        annotation["bbox"] = [0.1, 0.2, 0.9, 0.5]
    path.write_text(json.dumps(content))
    with pytest.raises(ValueError, match=r"all training boxes lie between 0 and 2, .* normalised.* Expected pixels"):
        make(folder).setup("fit")
    for annotation in content["annotations"]:
        annotation["iscrowd"] = 1
    path.write_text(json.dumps({**content, "annotations": []}))
    with pytest.raises(ValueError, match="the training images have no usable boxes"):
        make(folder).setup("fit")


def test_boxes_that_become_too_small_are_counted(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    tiny = (11, 6, 13, 30)  # three pixels wide
    folder = write_voc(tmp_path, {"train": [[("red", BOX), ("red", tiny)], [("red", tiny)]], "val": [[("red", BOX)]]})
    make(folder, image_size=17).setup("fit")
    assert "side below one pixel" not in capsys.readouterr().out
    make(folder, image_size=15).setup("fit")
    expected = (
        "  train: 2 of the boxes have a side below one pixel after resizing to data.image_size=15, and are left out"
    )
    assert f"{expected} (in train_0.png, train_1.png)" in capsys.readouterr().out.splitlines()


@pytest.mark.parametrize("write", [write_coco, write_voc])
@pytest.mark.parametrize(
    ("orientation", "size", "message"),
    [
        (1, (65, 47), ""),  # tools round differently
        (1, (32, 24), r"has 32 × 24 pixels, but its annotations state 64 × 48\. .*Scale the boxes"),
        (6, (64, 48), r"has 48 × 64 pixels, but its annotations state 64 × 48\. Width and height are swapped.*EXIF"),
        (6, (48, 64), ""),
    ],
)
def test_stated_sizes_are_those_of_the_files(
    tmp_path: Path, write: Any, orientation: int, size: tuple[int, int], message: str
) -> None:
    folder = write(tmp_path) if write is write_coco else write(tmp_path, {"train": [[("red", BOX)]] * 4})
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.new("RGB", size).save(sorted(folder.glob("*/*.png"))[1], exif=exif)
    with pytest.raises(ValueError, match=message) if message else nullcontext():
        make(folder).setup("fit")


def test_the_card_states_categories_and_preprocessing(tmp_path: Path) -> None:
    card = make(write_coco(tmp_path, val=2)).card()
    assert card["dataset"]["category_ids"] == [3, 7, 9] and card["dataset"]["splits"] == {
        "train": 8,
        "val": 2,
        "test": 0,
    }
    assert card["cfg"]["input_size"] == [3, 48, 64] and card["cfg"]["label_names"] == ["red", "green", "blue"]


def test_the_size_of_images_is_described_by_their_sides(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    side = "images are resized to a shorter side of {} pixels and a longer side of at most 64"
    assert make(folder).describe_size() == side.format("48")
    assert make(folder, multi_scale=[56, 32, 40]).describe_size() == side.format("32 to 56")


def test_weights_read_boxes_in_the_format_of_their_data(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    for box_format in ("xyxy", "xywh"):
        data = make(folder, box_format=box_format)
        config = {
            "pretrained_cfg": data.preprocessing(),
            "task_options": {"image_size": 48, "max_size": 64, "detector": "fcos"},
            "acmix_zoo": {"dataset": data.describe()},
        }
        assert BoxDataModule.for_weights(str(folder), config).box_format == box_format


def test_a_split_to_evaluate_may_be_missing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no test split\. Add annotations/instances_test\.json or test/_annot"):
        make(write_coco(tmp_path / "coco")).test_dataloader()
    with pytest.raises(ValueError, match=r"Add the names of its images as ImageSets/Main/test\.txt"):
        make(write_voc(tmp_path / "voc", {"train": [[("a", BOX)]]}), val_fraction=0.0).test_dataloader()


def test_validation_images_are_split_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = make(write_coco(tmp_path, train=8, val=0), val_fraction=0.25)
    assert data.loaders.sizes() == {"train": 6, "val": 2}
    data.setup("fit")
    assert "val was split off from train" in capsys.readouterr().out


def test_images_are_normalised(tmp_path: Path) -> None:
    data = make(write_coco(tmp_path, val=2))
    image = next(iter(data.val_dataloader())).images[0]
    raw = data.example_batch(1).images[0]
    expected = (raw / 255 - torch.tensor(data.pixels.mean)[:, None, None]) / torch.tensor(data.pixels.std)[
        :, None, None
    ]
    torch.testing.assert_close(image, expected)
    torch.testing.assert_close(data.on_after_batch_transfer(BoxBatch([raw], [{}]), 0).images[0], expected)
    torch.testing.assert_close(data.example_images()[0], expected)  # the image already has its final size


def test_unreadable_images_are_reported_before_the_run(tmp_path: Path) -> None:
    folder = write_coco(tmp_path)
    (folder / "train2017/000003.png").write_bytes(b"")
    with pytest.raises(ValueError, match="1 of 8 train images cannot be used"):
        make(folder).setup("fit")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, "image_size=0 is too small"),
        ({"multi_scale": [32, 0]}, "multi_scale=0 is too small"),
        ({"val_fraction": 1.0}, r"val_fraction=1\.0 is not a fraction"),
        ({"max_unreadable": -1}, "max_unreadable=-1 is negative"),
    ],
)
def test_impossible_options(tmp_path: Path, options: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make(tmp_path, **options)


def test_other_folders_are_rejected(tmp_path: Path) -> None:
    (tmp_path / "cats").mkdir()
    with pytest.raises(ValueError, match=r"is a folder without boxes\. Expected a folder with annotations in COCO's"):
        make(tmp_path)
    with pytest.raises(ValueError, match=r"whose boxes have no masks\. Set data.masks to false"):
        make(write_voc(tmp_path / "voc", {"train": [[("a", BOX)]]}), masks=True)
    with pytest.raises(FileNotFoundError, match="does not exist"):
        make(tmp_path / "missing" / "deep")


@pytest.mark.parametrize("write", [write_coco, write_voc])
def test_sizes_that_annotations_do_not_state_are_those_of_the_files(tmp_path: Path, write: Any) -> None:
    """A box outside its image cannot be found, so that it would lower the precision."""
    if write is write_voc:
        write(tmp_path, {split: [[("red", BOX), ("red", (71, 6, 90, 30))]] for split in ("train", "val")})
        for file in (tmp_path / "Annotations").iterdir():
            file.write_text(file.read_text().replace("<width>64", "<width>0"))
    else:
        for file in (write(tmp_path, train=1, val=1) / "annotations").iterdir():
            content = json.loads(file.read_text())
            del content["images"][0]["width"]
            content["annotations"] = [{**content["annotations"][0], "bbox": [x, 5, 20, 20]} for x in (10, 70)]
            file.write_text(json.dumps(content))
    data = make(tmp_path)
    (batch,) = data.val_dataloader()
    assert len(batch.targets[0]["boxes"]) == 1
    assert "left out 2 outside their image" in data.loaders.summary({})
