"""The moving average of the weights: what it averages, in which precision, and where it is used."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from support.training import (
    make_data,
    make_task,
    make_trainer,
)
from torch import Tensor, nn

from acmix_zoo.training import EMA, RunFolder


def test_ema_averages_floats_and_copies_integers() -> None:
    class Net(L.LightningModule):
        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.zeros(3))
            self.register_buffer("index", torch.arange(1, 4000))
            self.register_buffer("running", torch.zeros(2))

    net, ema = Net(), EMA(decay=0.9)
    ema.setup(L.Trainer(logger=False, enable_checkpointing=False), net, "fit")
    average = ema._average_model
    assert average is not None
    expected = torch.zeros(3)
    for n in range(200):
        with torch.no_grad():
            net.weight += 1
            net.running += 2
            net.index += 1
        average.update_parameters(net)
        decay = min(0.9, (1 + n) / (10 + n)) if n else 0.0  # torch copies the first time
        expected = decay * expected + (1 - decay) * net.weight.detach()
    twin = average.module
    assert torch.equal(twin.index, net.index)
    torch.testing.assert_close(twin.weight.detach(), expected)
    torch.testing.assert_close(twin.running, 2 * expected[:2])


def test_ema_evaluates_saves_and_keeps_the_average(image_folder: Path, tmp_path: Path) -> None:
    seen: list[Tensor] = []

    class Watch(L.Callback):
        def on_validation_batch_end(self, trainer: L.Trainer, module: L.LightningModule, *_: Any) -> None:
            seen.append(module.model.fc.weight.detach().clone())

    task = make_task(ema_decay=0.99, lr=0.01)
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(Watch(), run, epochs=2, num_sanity_val_steps=0).fit(task, make_data(image_folder))
    checkpoint = torch.load(run.last, weights_only=True)
    average = checkpoint["state_dict"]["model.fc.weight"]
    trained = checkpoint["current_model_state"]["model.fc.weight"]
    assert not torch.equal(average, trained)
    assert torch.equal(seen[-1], average)
    assert torch.equal(task.model.fc.weight, average)
    counter = checkpoint["state_dict"]["model.bn1.num_batches_tracked"]
    assert counter == checkpoint["current_model_state"]["model.bn1.num_batches_tracked"] == 6


@pytest.mark.parametrize("decay", [0.0, 1.0])
def test_decay_out_of_range_is_rejected(decay: float) -> None:
    with pytest.raises(ValueError, match="Expected a number in"):
        EMA(decay)


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
