"""The classification task with Lightning's own tools: training, prediction, checkpoints, the Tuner."""

import copy
import math
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

from lightning.pytorch.tuner import Tuner
from support.training import (
    CallAt,
    cut_power,
    make_data,
    make_task,
    make_trainer,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder


def test_a_short_training_learns(image_folder: Path) -> None:
    task, data = make_task(lr=0.01), make_data(image_folder)
    trainer = make_trainer(epochs=4, enable_checkpointing=False)
    trainer.fit(task, data)
    metrics = trainer.callback_metrics
    assert metrics["val/top1"] > 0.8
    assert "val/top5" not in metrics  # it would always be 1 for three classes
    assert metrics["train/loss"] < math.log(3)


@pytest.mark.parametrize(
    "case",
    [
        {"optimizer": "sgd", "label_smoothing": 0.1},
        {"layer_decay": 0.7, "channels_last": False},
        {"mixup": 0.8, "cutmix": 1.0, "label_smoothing": 0.1},
        {"precision": "bf16-mixed", "gradient_clip_val": 0.1, "ema_decay": 0.9},
        {"accumulate_grad_batches": 2, "ema_decay": 0.9},
    ],
    ids=lambda case: "-".join(case),
)
def test_every_option_trains(case: dict[str, Any], image_folder: Path) -> None:
    mix = {k: case[k] for k in case if k in ("mixup", "cutmix")}
    trainer_options = {k: case[k] for k in case if k in ("precision", "gradient_clip_val", "accumulate_grad_batches")}
    task = make_task(**{k: case[k] for k in case if k not in mix and k not in trainer_options})
    before = {name: p.clone() for name, p in task.named_parameters()}
    trainer = make_trainer(epochs=1, enable_checkpointing=False, **trainer_options)
    trainer.fit(task, make_data(image_folder, **mix))
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert all(p.isfinite().all() for p in task.parameters())
    assert all(not torch.equal(before[name], p) for name, p in task.named_parameters() if p.ndim > 1)


def test_compile_keeps_the_names_of_the_weights(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A fake compiler stands in, because the real one takes a minute. tests/cli/test_fit.py has a slow test with it."""
    calls: list[int] = []

    def fake_compile(self: nn.Module) -> None:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(args[0]))
            return type(self)._call_impl(self, *args, **kwargs)

        self._compiled_call_impl = compiled  # what nn.Module.compile sets

    monkeypatch.setattr(nn.Module, "compile", fake_compile)
    task = make_task(compile=True, ema_decay=0.9)
    keys = list(task.state_dict())
    make_trainer(epochs=1, enable_checkpointing=False, limit_train_batches=1).fit(task, make_data(image_folder))
    assert calls
    assert list(task.state_dict()) == keys


def test_gradient_checkpointing_is_passed_to_the_network() -> None:
    assert make_task(grad_checkpointing=True).model.grad_checkpointing


def test_a_linear_probe_trains_only_the_classifier(image_folder: Path) -> None:
    task = make_task(linear_probe=True, lr=0.1)
    before = {key: value.clone() for key, value in task.model.state_dict().items()}
    make_trainer(epochs=2, enable_checkpointing=False).fit(task, make_data(image_folder))
    changed = {key for key, value in task.model.state_dict().items() if not torch.equal(value, before[key])}
    assert changed == {"fc.weight", "fc.bias"}


def test_data_with_a_different_number_of_classes_is_rejected(image_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the model has 5 classes, but the data has 3\. Use .*num_classes=3"):
        make_trainer(enable_checkpointing=False).fit(make_task(num_classes=5), make_data(image_folder))


def test_a_checkpoint_of_a_different_model_is_rejected(image_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(make_task(), make_data(image_folder))
    other = ClassificationTask("test_vit", num_classes=3, model_kwargs={"img_size": 32})
    with pytest.raises(ValueError, match=r"contains test_resnet with 3 classes\. Expected test_vit with 3"):
        trainer = make_trainer(epochs=2, enable_checkpointing=False)
        trainer.fit(other, make_data(image_folder), ckpt_path=run.last, weights_only=True)
    again = ClassificationTask.load_from_checkpoint(run.best, weights_only=True)
    assert torch.equal(again.model.fc.weight, torch.load(run.best)["state_dict"]["model.fc.weight"])


@pytest.mark.parametrize("batches", ["tensors", "lists of one tensor", "with positions"])
def test_predict_accepts_a_loader_of_only_images(batches: str) -> None:
    images = torch.rand(5, 3, 32, 32)
    loader: Any = DataLoader(images, batch_size=2)
    if batches == "lists of one tensor":
        loader = DataLoader(TensorDataset(images), batch_size=2)
    elif batches == "with positions":
        loader = DataLoader(TensorDataset(images, torch.arange(5)), batch_size=2)
    task = make_task().eval()
    found = make_trainer().predict(task, loader)
    assert found is not None
    if batches == "with positions":
        assert torch.cat([index for _, index in found]).tolist() == list(range(5))
        found = [probabilities for probabilities, _ in found]
    with torch.no_grad():
        expected = task(images).softmax(-1)
    torch.testing.assert_close(torch.cat(found), expected)


def test_a_checkpoint_within_an_epoch_loads_without_a_trainer(image_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"), save_every=1)

    with pytest.raises(RuntimeError, match="power"):
        make_trainer(CallAt(cut_power, epoch=0, batch=1), run).fit(make_task(), make_data(image_folder))
    assert "train_loss" in torch.load(run.last, weights_only=True)
    task = ClassificationTask.load_from_checkpoint(run.last, weights_only=True)
    state = torch.load(run.last, weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[name]) for name, value in task.state_dict().items())


def test_hooks_work_without_a_trainer(image_folder: Path) -> None:
    """A task and its data can be used on their own."""
    task, data = make_task(), make_data(image_folder)
    data.setup("fit")
    batch = next(iter(data.train_dataloader()))
    assert task.training_step(batch, 0).isfinite()
    task.validation_step(batch, 0)
    assert task.predict_step(batch, 0)[0].shape == (8, 3)
    checkpoint: dict[str, Any] = {}
    task.on_save_checkpoint(checkpoint)
    task.on_load_checkpoint({**checkpoint, "hyper_parameters": dict(task.hparams), "train_loss": torch.zeros(3)})
    data.load_state_dict(data.state_dict())
    assert not checkpoint


@pytest.mark.slow
@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_tuner_scales_the_batch_size(image_folder: Path, tmp_path: Path, ema: float | None) -> None:
    trainer = make_trainer(epochs=1, enable_checkpointing=False, default_root_dir=tmp_path)
    task, data = make_task(ema_decay=ema), make_data(image_folder, batch_size=4)
    before = copy.deepcopy(task.model.state_dict())
    size = Tuner(trainer).scale_batch_size(task, datamodule=data, max_trials=2, steps_per_trial=1, init_val=2)
    assert size == data.batch_size == 4
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    trainer.fit(task, data)
    assert trainer.global_step == 6  # 27 images, four at a time


def test_the_tuner_suggests_a_learning_rate(image_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(epochs=5, enable_checkpointing=False, default_root_dir=tmp_path)
    task, data = make_task(), make_data(image_folder)
    finder = Tuner(trainer).lr_find(task, datamodule=data, num_training=12, early_stop_threshold=None)
    assert finder is not None and len(finder.results["lr"]) >= 10
    suggested = finder.suggestion(skip_begin=1, skip_end=1)
    assert suggested is not None and 1e-8 < suggested < 1
    rate = task.hparams["lr"]
    trainer.fit(task, data)
    group = task.trainer.optimizers[0].param_groups[0]
    assert group["initial_lr"] == pytest.approx(rate)
