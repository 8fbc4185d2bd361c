"""Parameter groups, the learning-rate schedule, and how the learning rate follows the batch size."""

from itertools import pairwise
from pathlib import Path

import pytest
import timm
import torch

pytest.importorskip("lightning")

from support.training import (
    make_data,
    make_task,
    make_trainer,
)
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from acmix_zoo.training import param_groups, warmup_cosine


def test_the_warm_up_has_the_same_length_if_the_number_of_steps_is_limited(image_folder: Path) -> None:
    task, data = make_task(lr=0.1, warmup_epochs=1), make_data(image_folder)
    trainer = make_trainer(epochs=10, max_steps=7, enable_checkpointing=False, limit_train_batches=3)
    rates: list[float] = []
    task.on_before_zero_grad = lambda optimizer: rates.append(optimizer.param_groups[0]["lr"])  # type: ignore[method-assign]
    trainer.fit(task, data)
    assert rates.index(max(rates)) == 3, "after one epoch of three steps"
    assert len(rates) == 7 and rates[-1] < 0.02, "the cosine ends with the last step"


def test_layer_decay_reaches_the_optimiser_and_survives_the_schedule() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    groups = param_groups(model, lr=1.0, weight_decay=0.1, layer_decay=0.5)
    rate = {id(p): g["lr"] for g in groups for p in g["params"]}
    assert rate[id(model.head.weight)] == 1.0
    assert rate[id(model.patch_embed.proj.weight)] == min(rate.values()) < 0.2

    optimizer = torch.optim.SGD(groups, lr=1.0)
    before = [g["lr"] for g in optimizer.param_groups]
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, warmup_cosine(2, 10))
    for _ in range(5):
        optimizer.step()
        schedule.step()
    factor = warmup_cosine(2, 10)(5)
    assert 0 < factor < 1
    assert [g["lr"] for g in optimizer.param_groups] == pytest.approx([factor * lr for lr in before])


def test_weight_decay_spares_one_dimensional_parameters_and_those_the_model_names() -> None:
    model = timm.create_model("test_vit", num_classes=3)
    for layer_decay in (None, 0.75):
        groups = param_groups(model, 1e-3, 0.1, layer_decay)
        decayed = {id(p) for g in groups for p in g["params"] if g["weight_decay"] > 0}
        for name, p in model.named_parameters():
            spared = p.ndim <= 1 or name in model.no_weight_decay()
            assert (id(p) not in decayed) == spared, name
        assert sum(len(g["params"]) for g in groups) == len(list(model.parameters()))


@pytest.mark.parametrize("layer_decay", [0.0, -1.0, 1.5])
def test_layer_decay_out_of_range_is_rejected(layer_decay: float) -> None:
    with pytest.raises(ValueError, match=r"Expected a factor per layer in \(0, 1\]"):
        param_groups(nn.Linear(2, 2), 1e-3, 0.1, layer_decay)


def test_schedule_warms_up_falls_and_saturates() -> None:
    factor = warmup_cosine(4, 20, floor=0.1)
    values = [factor(step) for step in range(40)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(values[4:21]))
    assert values[12] == pytest.approx(0.55)  # half of the cosine
    assert values[20:] == pytest.approx([0.1] * 20)
    assert warmup_cosine(0, 10)(0) == 1.0


def test_warm_up_starts_at_the_given_factor() -> None:
    factor = warmup_cosine(3, 10, start=0.25)
    assert [factor(step) for step in range(4)] == pytest.approx([0.4375, 0.625, 0.8125, 1.0])


def test_schedule_needs_epochs() -> None:
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
    trainer = make_trainer(epochs=-1, max_steps=2, enable_checkpointing=False)
    with pytest.raises(ValueError, match="the schedule depends on the length of the run"):
        trainer.fit(make_task(), loader)


def test_learning_rate_follows_the_effective_batch_size(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    task = make_task(lr=0.1, base_batch_size=16, warmup_epochs=0, optimizer="sgd", nesterov=False)
    trainer = make_trainer(epochs=1, enable_checkpointing=False, limit_train_batches=2, accumulate_grad_batches=2)
    trainer.fit(task, make_data(image_folder, batch_size=4))
    group = task.trainer.optimizers[0].param_groups[0]
    assert group["initial_lr"] == pytest.approx(0.1 * 4 * 2 / 16) and not group["nesterov"]
    printed = "Batch: 1 × 4 × 2 accumulated = 8 images per step; learning rate 0.05 = 0.1 × 8 / 16"
    assert printed in capsys.readouterr().out


def test_base_batch_size_needs_data_with_a_batch_size() -> None:
    loader = torch.utils.data.DataLoader([(torch.zeros(3, 32, 32), 0)] * 4, batch_size=2)
    with pytest.raises(ValueError, match="base_batch_size is set, but the data has no batch_size"):
        make_trainer(epochs=1, enable_checkpointing=False).fit(make_task(base_batch_size=4), loader)
