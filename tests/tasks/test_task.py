"""What all tasks share: names, checkpoints that state their task, and errors that name what to do."""

from types import SimpleNamespace
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch.strategies import ModelParallelStrategy
from support.tasks import TASKS, TaskCase, skip_without_packages

from acmix_zoo.models.task_kinds import TASK_KINDS, config_task
from acmix_zoo.tasks import ClassificationTask, Task
from acmix_zoo.tasks.task_classes import TASK_NAMES, task_classes


@pytest.mark.parametrize("name", TASK_NAMES)
def test_the_classes_of_a_task_belong_together(name: str) -> None:
    classes = task_classes(name)
    assert issubclass(classes.task, Task) and classes.task.kind is TASK_KINDS[name]
    assert classes.data.__name__.endswith("DataModule") and classes.data.expected_source
    assert classes.task.kind.main_metric in classes.task.kind.metrics


def test_unknown_tasks_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"unknown task 'nothing'\. Expected classification, segmentation"):
        task_classes("nothing")
    with pytest.raises(ValueError, match="unknown task"):
        config_task({"task": ["a"]})


def test_hyper_parameters_of_task_and_subclass_are_stored() -> None:
    task = ClassificationTask("test_resnet", 3, lr=0.5, label_smoothing=0.1, model_kwargs={"drop_rate": 0.2})
    assert task.hparams["lr"] == 0.5 and task.hparams["label_smoothing"] == 0.1 and task.hparams["num_classes"] == 3
    assert task.hparams["momentum"] == 0.9 and task.hparams["linear_probe"] is False
    with pytest.raises(TypeError, match="colour"):
        ClassificationTask("test_resnet", colour=1)


def test_a_checkpoint_of_another_task_is_rejected() -> None:
    task = ClassificationTask("test_resnet", 3)
    checkpoint: dict[str, Any] = {"task": "segmentation", "hyper_parameters": dict(task.hparams)}
    with pytest.raises(ValueError, match=r"for semantic segmentation\. Expected one for image classification\. Use"):
        task.on_load_checkpoint(checkpoint)
    task.on_load_checkpoint({**checkpoint, "task": "classification"})
    del checkpoint["task"]  # one of an earlier version
    task.on_load_checkpoint(checkpoint)


@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_averaging_and_sharding_exclude_each_other(task: TaskCase) -> None:
    skip_without_packages(task)
    module = task.make_task(ema_decay=0.9)
    strategy = ModelParallelStrategy.__new__(ModelParallelStrategy)
    module.trainer = SimpleNamespace(strategy=strategy, state=SimpleNamespace(fn="fit"))  # type: ignore[assignment]
    with pytest.raises(ValueError, match=r"ema_decay does not work with a network that is sharded over processes"):
        module.configure_callbacks()


def test_loss_and_batch_size_come_from_the_first_entry_of_a_batch() -> None:
    task = ClassificationTask("test_resnet", 3)
    images, classes = torch.randn(4, 3, 32, 32), torch.tensor([0, 1, 2, 0])
    loss = task.training_step((images, classes), 0)
    assert int(task.train_loss.count) == 4 and float(task.train_loss.compute()) == pytest.approx(float(loss), abs=1e-5)


def test_a_batch_that_is_too_small_for_batch_norm_is_an_error_with_advice() -> None:
    task = ClassificationTask("resnet18", 3)  # of a 32-pixel image, it has one position left
    with pytest.raises(ValueError, match=r"a batch of 1 is too small for the batch norm.* Raise data\.batch_size"):
        task.training_step((torch.randn(1, 3, 32, 32), torch.tensor([0])), 0)
