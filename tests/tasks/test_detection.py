"""`DetectionTask`: training, metrics, predictions, the plot of a run, and errors before the first step."""

from pathlib import Path
from typing import Any

import pytest
import torch
from support.box_data import write_coco
from support.training import make_trainer

from acmix_zoo.cli.coco_predictions import coco_content, coco_image
from acmix_zoo.data.boxes.box_module import BoxDataModule
from acmix_zoo.tasks import detection
from acmix_zoo.tasks.detection import DetectionTask, ImageDetections
from acmix_zoo.tasks.optim import warmup_steps

SIZES: dict[str, Any] = {"image_size": 48, "max_size": 64}


def make_data(folder: Path, **options: Any) -> BoxDataModule:
    return BoxDataModule(str(folder), **{**SIZES, "batch_size": 4, **options})


def make_task(**options: Any) -> DetectionTask:
    torch.manual_seed(0)
    small = {"detector": "fcos", "strides": [4, 8], "channels": 64, **SIZES}
    return DetectionTask("test_resnet", 3, **{**small, **options})


def test_fit_logs_loss_and_average_precision(tmp_path: Path) -> None:
    data, task = make_data(write_coco(tmp_path / "data", train=4, val=2)), make_task(ema_decay=0.9)
    trainer = make_trainer(epochs=1, default_root_dir=tmp_path)
    trainer.fit(task, data)
    logged = trainer.callback_metrics
    assert logged["train/loss"].isfinite() and 0 <= logged["val/map"] <= logged["val/map50"] <= 1
    assert list(task.class_scores["val"]) == ["AP", "AP50"]
    assert all(set(scores) == {"red", "green", "blue"} for scores in task.class_scores["val"].values())
    task.plot_examples(data, tmp_path / "predictions.png")
    assert (tmp_path / "predictions.png").stat().st_size > 1000


@pytest.mark.slow
def test_coloured_squares_are_learned(tmp_path: Path) -> None:
    data = make_data(write_coco(tmp_path / "data", train=64, val=16))
    task = make_task(lr=3e-3, warmup_epochs=1.0)
    trainer = make_trainer(epochs=25, default_root_dir=tmp_path)
    trainer.fit(task, data)
    assert trainer.callback_metrics["val/map50"] > 0.8


@pytest.mark.parametrize("has_masks", [False, True])
def test_predictions_in_coco_format(tmp_path: Path, has_masks: bool) -> None:
    masks = torch.zeros(1, 48, 64, dtype=torch.bool)
    masks[:, 10:20, 5:10] = True
    found = ImageDetections(
        0, (48, 64), torch.tensor([[5.0, 10.0, 10.0, 20.0]]), torch.tensor([1]), torch.tensor([0.75]),
        masks if has_masks else None,
    )  # fmt: skip
    content = coco_content([coco_image(found, [3, 7])], ["/images/000139.jpg"], ["red", "green"], [3, 7])
    assert content["images"] == [{"id": 139, "file_name": "/images/000139.jpg", "width": 64, "height": 48}]
    assert content["categories"] == [{"id": 3, "name": "red"}, {"id": 7, "name": "green"}]
    (annotation,) = content["annotations"]
    assert annotation["image_id"] == 139 and annotation["category_id"] == 7 and annotation["score"] == 0.75
    assert annotation["bbox"] == [5, 10, 5, 10] and annotation["area"] == 50
    assert ("segmentation" in annotation) == has_masks
    named = coco_content([coco_image(found, [1, 2])], ["cat.jpg"], ["red", "green"], [1, 2])
    assert named["images"][0]["id"] == 1


def test_padding_images_are_not_counted(tmp_path: Path) -> None:
    data, task = make_data(write_coco(tmp_path / "data")), make_task().eval()
    batch = next(iter(data.val_dataloader()))
    batch.targets[1]["image"] = torch.tensor(-1)
    with torch.no_grad():
        task.update_metrics(task.val_metrics, batch)
        assert [each.image for each in task.predict_step(batch, 0)] == [0, -1, 2, 3]
    assert task.val_metrics.numbers == [0, 2, 3]


@pytest.mark.parametrize(("detector", "masks"), [("mask_rcnn", False), ("fcos", True)])
def test_masks_have_to_fit_the_detector(tmp_path: Path, detector: str, masks: bool) -> None:
    data = make_data(write_coco(tmp_path / "data"), masks=masks)
    task = make_task(detector=detector)
    with pytest.raises(ValueError, match=f"{detector} .* but data.masks is {str(masks).lower()}. Set --data.masks"):
        make_trainer(epochs=1, default_root_dir=tmp_path).fit(task, data)


def test_nothing_is_drawn_for_a_sharded_network(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Only one process draws, and would wait for the others."""
    monkeypatch.setattr(detection, "is_sharded", lambda network: True)
    make_task().plot_examples(make_data(write_coco(tmp_path / "data")), tmp_path / "predictions.png")
    assert not (tmp_path / "predictions.png").exists()


def test_decay_epochs() -> None:
    schedule = make_task(decay_epochs=[2, 3], warmup_epochs=0.5).make_schedule(40, 10)
    factors = [schedule(step) for step in range(40)]
    assert factors[5:20] == [1.0] * 15
    assert factors[20:30] == pytest.approx([0.1] * 10) and factors[30:] == pytest.approx([0.01] * 10)
    assert factors[:5] == sorted(factors[:5]) and factors[0] == pytest.approx(1 / 6)
    assert warmup_steps(4, [], start=0.5)(0) == pytest.approx(0.6)
    assert make_task().make_schedule(40, 10)(39) < 0.1  # else a cosine
