"""Batches of images with boxes: resuming, unreadable files, and padding images in evaluation."""

from pathlib import Path

import numpy as np
import pytest
import torch
from support.box_data import write_coco

from acmix_zoo.data.augment import Pixels
from acmix_zoo.data.boxes.box_augment import BoxAugment
from acmix_zoo.data.boxes.box_dataset import BoxBatch, BoxDataset
from acmix_zoo.data.boxes.coco_source import CocoSource
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.splits import Split

PIXELS = Pixels(48, (0.5, 0.5, 0.5), (0.5, 0.5, 0.5), "bilinear", 1.0)
AUGMENT = BoxAugment(PIXELS, sizes=(40, 48, 56), hflip=0.5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write_coco(tmp_path, train=4, val=0)


def dataset(folder: Path, **options: object) -> BoxDataset:
    images = CocoSource(str(folder)).splits["train"]
    return BoxDataset(Split(images, np.arange(len(images))), AUGMENT, raw=True, **options)


def same(a: BoxBatch, b: BoxBatch) -> bool:
    return len(a.images) == len(b.images) and all(
        torch.equal(x, y) and s.keys() == t.keys() and all(torch.equal(s[name], t[name]) for name in s)
        for x, y, s, t in zip(a.images, b.images, a.targets, b.targets, strict=True)
    )


def test_augmentation_depends_on_seed_epoch_and_image(folder: Path) -> None:
    first, second = (dataset(folder, training=True, seed=3) for _ in range(2))
    first.epoch = second.epoch = 5
    assert same(first.__getitems__([0, 1, 2]), second.__getitems__([0, 1, 2]))
    assert same(first.__getitems__([1]), BoxBatch(*(part[1:2] for part in first.__getitems__([0, 1]))))
    second.epoch = 6
    assert not same(first.__getitems__(range(4)), second.__getitems__(range(4)))


def test_training_targets_have_what_detectors_take(folder: Path) -> None:
    batch = dataset(folder, training=True).__getitems__([0, 1])
    assert all(set(target) == {"boxes", "labels"} for target in batch.targets)
    assert all(image.dtype == torch.uint8 and image.shape[0] == 3 for image in batch.images)


def test_evaluation_targets_are_numbered_and_padding_is_marked(folder: Path) -> None:
    batch = dataset(folder).__getitems__([2, -1 - 2])
    assert [int(target["image"]) for target in batch.targets] == [2, -1]
    assert {"boxes", "labels", "iscrowd", "area"} < set(batch.targets[0])


def test_unreadable_images_are_skipped(folder: Path) -> None:
    (folder / "train2017/000001.png").write_bytes(b"")
    images = dataset(folder, training=True, max_unreadable=1)
    with pytest.warns(UserWarning, match=r"skipped: image .*000001\.png"):
        assert len(images.__getitems__([0, 1]).images) == 1
    assert len(images.__getitems__([1]).images) == 1  # the next image instead
    assert len(images.names([0, 1])) == 1
    evaluation = dataset(folder, max_unreadable=1)
    with pytest.warns(UserWarning, match="skipped"):
        (target,) = evaluation.__getitems__([1]).targets
    assert int(target["image"]) == -1 and target["boxes"].shape == (0, 4)
    with pytest.raises(UnreadableImage, match=r"000001\.png"):
        dataset(folder).__getitems__([1])
