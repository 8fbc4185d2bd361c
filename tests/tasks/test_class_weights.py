"""`ClassificationTask(class_weights=…)`: rare classes count more in the loss, and checkpoints do not change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.training import make_data, make_image_folder, make_task, make_trainer
from torch.nn.functional import cross_entropy


@pytest.fixture
def uneven_folder(tmp_path: Path) -> Path:
    """Return a folder with 8 training images of one class and 2 of another."""
    folder = make_image_folder(tmp_path / "images", classes=2, per_class=8)
    for path in sorted((folder / "class1").iterdir())[2:]:
        path.unlink()
    return folder


def test_balanced_weights_follow_from_the_training_images(uneven_folder: Path) -> None:
    task = make_task(num_classes=2, class_weights="balanced")
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, make_data(uneven_folder, val_fraction=0))
    assert task.train_criterion.weight.tolist() == pytest.approx([10 / (2 * 8), 10 / (2 * 2)])
    assert task.remarks() == [
        "Classes are uneven, so an image of the rarest class counts 4.0 times as much in the loss"
    ]
    assert not [name for name in task.state_dict() if "criterion" in name]  # evaluation needs no class weights
    logits, classes = torch.randn(5, 2), torch.tensor([0, 0, 1, 0, 1])
    task.forward = lambda x: x  # type: ignore[method-assign]
    expected = cross_entropy(logits, classes, weight=torch.tensor([0.625, 2.5]))
    assert float(task.batch_loss((logits, classes))) == pytest.approx(float(expected))


def test_given_weights_are_used_and_checked() -> None:
    task = make_task(class_weights=[1.0, 2.0, 3.0])
    assert task.train_criterion.weight.tolist() == [1, 2, 3] and task.remarks() == []
    whole = make_task(class_weights=[1, 2, 3])  # whole numbers, in Python
    assert float(whole.train_criterion(torch.zeros(1, 3), torch.tensor([1]))) == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match=r"there are 2 class_weights\. Expected 3, one per class"):
        make_task(class_weights=[1.0, 2.0])


def test_even_classes_need_no_remark(image_folder: Path) -> None:
    task = make_task(class_weights="balanced")
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, make_data(image_folder))
    assert task.train_criterion.weight.tolist() == [1, 1, 1] and task.remarks() == []
