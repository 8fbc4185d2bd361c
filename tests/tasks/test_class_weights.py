"""`ClassificationTask(class_weights=…)`: rare classes count more in the loss, and checkpoints do not change."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from support.training import make_data, make_image_folder, make_task, make_trainer
from torch.nn.functional import cross_entropy

from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.tasks.classification import WeightedCrossEntropy, balanced_weights


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
        "The classes are imbalanced, so in the loss an image of the rarest class counts 4.0 times as much as "
        "one of the most common class"
    ]
    assert not [name for name in task.state_dict() if "criterion" in name]  # evaluation needs no class weights
    logits, classes = torch.randn(5, 2), torch.tensor([0, 0, 1, 0, 1])
    task.forward = lambda x: x  # type: ignore[method-assign]
    losses = cross_entropy(logits, classes, reduction="none")
    expected = (losses * torch.tensor([0.625, 0.625, 2.5, 0.625, 2.5])).mean()
    assert float(task.batch_loss((logits, classes))) == pytest.approx(float(expected))


@pytest.mark.parametrize("is_mixed", [False, True], ids=["classes", "mixed classes"])
def test_the_loss_of_an_image_does_not_depend_on_the_batch(is_mixed: bool) -> None:
    """Neither on the other images of a batch nor on accumulation, also with smoothed labels."""
    loss = WeightedCrossEntropy(torch.tensor([1.0, 0.5, 7.0]), label_smoothing=0.1)
    logits, classes = torch.randn(16, 3), torch.randint(0, 3, (16,))
    targets = torch.rand(16, 3).softmax(1) if is_mixed else classes
    parts = [loss(each, target) for each, target in zip(logits.split(4), targets.split(4), strict=True)]
    torch.testing.assert_close(torch.stack(parts).mean(), loss(logits, targets))
    one_hot = torch.nn.functional.one_hot(classes, 3).float()
    torch.testing.assert_close(loss(logits, one_hot), loss(logits, classes))


@pytest.mark.parametrize("counts", [[300, 15], [1000, 10], [500, 400, 5], [100, 100, 0], [*[300] * 9, 3]])
def test_rare_classes_do_not_attract_the_images_of_others(counts: list[int]) -> None:
    """torch's weights also weight the smoothed labels, so the best answer to any image would be the rarest class."""
    loss = WeightedCrossEntropy(balanced_weights(counts), label_smoothing=0.1)
    classes = torch.arange(len(counts))
    logits = torch.zeros(len(counts), len(counts), requires_grad=True)  # of an image of each class
    weights = torch.tensor(counts).float()
    for _ in range(300):
        losses = torch.stack([loss(logits[i : i + 1], classes[i : i + 1]) for i in range(len(counts))])
        (gradient,) = torch.autograd.grad((losses * weights).sum() / weights.sum(), logits)
        logits = (logits - 10 * len(counts) * gradient).detach().requires_grad_()
    present = weights > 0
    assert torch.equal(logits.argmax(1)[present], classes[present])


def test_given_weights_are_used_and_checked() -> None:
    task = make_task(class_weights=[1.0, 2.0, 3.0])
    assert task.train_criterion.weight.tolist() == [0.5, 1, 1.5] and task.remarks() == []
    whole = make_task(class_weights=[1, 2, 3])  # whole numbers, in Python
    assert float(whole.train_criterion(torch.zeros(1, 3), torch.tensor([1]))) == pytest.approx(math.log(3))
    with pytest.raises(ValueError, match=r"there are 2 class_weights\. Expected 3, one per class"):
        make_task(class_weights=[1.0, 2.0])
    for wrong in ([0.0, 0.0, 0.0], [1.0, -1.0, 1.0], [1.0, 1.0, math.inf]):
        with pytest.raises(ValueError, match=r"are unusable\. Expected numbers of 0 or more, not all zero"):
            make_task(class_weights=wrong)


def test_balanced_weights_need_a_data_module(image_folder: Path) -> None:
    loader = make_data(image_folder).train_dataloader()
    with pytest.raises(ValueError, match=r"class_weights='balanced' needs the number of images of each class"):
        make_trainer(enable_checkpointing=False).fit(make_task(class_weights="balanced"), loader)


def test_even_classes_need_no_remark(image_folder: Path) -> None:
    task = make_task(class_weights="balanced")
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, make_data(image_folder))
    assert task.train_criterion.weight.tolist() == [1, 1, 1] and task.remarks() == []


def test_a_linear_probe_of_a_network_with_two_classifiers() -> None:
    task = ClassificationTask("deit_tiny_distilled_patch16_224", 3, linear_probe=True, model_kwargs={"depth": 1})
    trained = {name.split(".")[1] for name, p in task.named_parameters() if p.requires_grad}
    assert trained == {"head", "head_dist"}
