"""Our task, data and averages with Lightning's own tools: checkpoints without a trainer, precisions, the Tuner."""

import copy
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.tuner import Tuner
from support.training import CallAt, cut_power, make_data, make_image_folder, make_task, make_trainer
from torch import Tensor, nn

from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import EMA, RunFolder
from acmix_zoo.training.guard import NotFinite, are_weights_finite
from acmix_zoo.training.signals import Signals


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


# ---- outside of a trainer


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


# ---- the Tuner


@pytest.mark.parametrize("ema", [None, 0.9])
def test_the_batch_size_is_scaled(image_folder: Path, tmp_path: Path, ema: float | None) -> None:
    trainer = make_trainer(epochs=1, enable_checkpointing=False, default_root_dir=tmp_path)
    task, data = make_task(ema_decay=ema), make_data(image_folder, batch_size=4)
    before = copy.deepcopy(task.model.state_dict())
    size = Tuner(trainer).scale_batch_size(task, datamodule=data, max_trials=2, steps_per_trial=1, init_val=2)
    assert size == data.batch_size == 4
    assert all(torch.equal(value, before[name]) for name, value in task.model.state_dict().items())
    trainer.fit(task, data)
    assert trainer.global_step == 6  # 27 images, four at a time


def test_the_learning_rate_finder_suggests_a_rate(image_folder: Path, tmp_path: Path) -> None:
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


# ---- averages over dtypes and devices


@pytest.mark.parametrize("precision", ["bf16-true", "bf16-mixed", "64-true"])
def test_averages_of_every_precision(image_folder: Path, tmp_path: Path, precision: Any) -> None:
    run, task = RunFolder(str(tmp_path / "run")), make_task(ema_decay=0.9, lr=0.01)
    make_trainer(run, epochs=2, precision=precision).fit(task, make_data(image_folder))
    checkpoint = torch.load(run.last, weights_only=True)
    average, trained = checkpoint["state_dict"], checkpoint["current_model_state"]
    own = {"bf16-true": torch.bfloat16, "64-true": torch.float64}.get(precision, torch.float32)
    assert trained["model.fc.weight"].dtype == own
    assert average["model.fc.weight"].dtype == (torch.float32 if own == torch.bfloat16 else own)
    assert not torch.equal(average["model.fc.weight"].to(own), trained["model.fc.weight"])
    counter = "model.bn1.num_batches_tracked"
    assert average[counter] == trained[counter] == 6


def test_an_average_keeps_what_its_weights_would_round_away() -> None:
    """With bfloat16 weights and a decay of 0.999, each of 200 updates changes the average by a thousandth. That is less
    than half a unit in the last place of bfloat16 at 1 (2^-8), so an average in bfloat16 would lose all of them."""

    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(5, dtype=torch.bfloat16))
            self.register_buffer("index", torch.arange(4000))

    net, ema = Net(), EMA(decay=0.999)
    ema.setup(L.Trainer(logger=False, enable_checkpointing=False), net, "fit")
    average = ema._average_model
    assert average is not None
    average.n_averaged.fill_(10_000)  # past the smaller decay of the first updates
    net.weight.data.fill_(1)
    for _ in range(200):
        net.index += 1
        average.update_parameters(net)
    expected = 1 - 0.999**200
    torch.testing.assert_close(average.module.weight.detach(), torch.full((5,), expected), rtol=200 * 2**-24, atol=0)
    assert torch.equal(average.module.index, net.index)


def test_a_validation_does_not_round_the_average() -> None:
    net = nn.ModuleDict({"layer": nn.Linear(64, 64)})
    module = L.LightningModule()
    module.layer = net["layer"].to(torch.bfloat16)
    ema = EMA()
    ema.setup(L.Trainer(logger=False, enable_checkpointing=False), module, "fit")
    average = ema._average_model
    assert average is not None
    average.module.layer.weight.data.normal_()
    before, trained = average.module.layer.weight.detach().clone(), module.layer.weight.detach().clone()
    ema._swap_models(module)
    assert torch.equal(module.layer.weight, before.bfloat16())
    ema._swap_models(module)
    assert torch.equal(average.module.layer.weight, before) and torch.equal(module.layer.weight, trained)


@pytest.mark.gpu
def test_an_average_is_on_the_gpu(image_folder: Path) -> None:
    seen: list[str] = []

    class Look(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            ema = next(callback for callback in trainer.callbacks if isinstance(callback, EMA))
            assert ema._average_model is not None
            seen.append(next(ema._average_model.module.parameters()).device.type)

    trainer = make_trainer(Look(), epochs=1, accelerator="gpu", devices=1, enable_checkpointing=False)
    trainer.fit(make_task(ema_decay=0.9), make_data(image_folder))
    assert set(seen) == {"cuda"}


# ---- a device that works behind the program


class Behind(Signals):
    """Signals as on a GPU, where the result of a step is checked after the next step has been queued."""

    @staticmethod
    def is_behind(device: torch.device) -> bool:
        return True

    @staticmethod
    def _send(values: Tensor) -> tuple[Tensor, Any]:
        class Done:
            def synchronize(self) -> None: ...

        return values.clone(), Done()


class NanAt(nn.CrossEntropyLoss):
    """Gives NaN for its n-th batch alone."""

    def __init__(self, batch: int) -> None:
        super().__init__()
        self.left = batch

    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        self.left -= 1
        return super().forward(x, y) * (float("nan") if self.left == -1 else 1)


@pytest.mark.parametrize("batch", [7, 11])  # within the second epoch of six steps, and its last
def test_a_loss_that_is_found_late_is_not_saved(image_folder: Path, tmp_path: Path, batch: int) -> None:
    """The saved batch is the one with the bad loss, and no checkpoint is affected, although each step is saved."""
    run, task = RunFolder(str(tmp_path / "run"), save_every=1), make_task(lr=0.01, ema_decay=0.9)
    run._signals = Behind()
    task.train_criterion = NanAt(batch)
    with pytest.raises(NotFinite, match=r"the loss is nan at epoch 2.*The affected weights were not saved") as e:
        make_trainer(run).fit(task, make_data(image_folder, batch_size=4))
    (kept,) = (tmp_path / "run").glob("not_finite_*.pt")
    assert str(kept) in str(e.value)
    content = torch.load(kept, weights_only=True)
    data = make_data(image_folder, batch_size=4)
    data.setup("fit")
    data.train_dataloader().sampler.set_epoch(1)
    assert content["names"] == data.describe_batch(batch - 6)
    last = torch.load(run.last, weights_only=True)
    assert last["global_step"] == batch
    assert all(v.isfinite().all() for s in ("state_dict", "current_model_state") for v in last[s].values())


def test_buffers_count_among_the_weights() -> None:
    module = L.LightningModule()
    module.norm = nn.BatchNorm2d(3)
    assert are_weights_finite(module)
    module.norm.running_var[1] = float("inf")
    assert not are_weights_finite(module)
