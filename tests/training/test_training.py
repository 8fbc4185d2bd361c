"""Training: groups, schedule, averaged weights, the task, and runs that are interrupted or run out of disk."""

import math
import os
import signal
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

pytest.importorskip("lightning")

import lightning as L
from support.training import (
    CallAt,
    assert_same_run,
    checkpoint_weights,
    make_data,
    make_image_folder,
    make_task,
    make_trainer,
    no_large_files,
)
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import EMA, RunFolder, param_groups, warmup_cosine
from acmix_zoo.training.signals import Interrupted


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    return make_image_folder(tmp_path / "images")


# ---- parameter groups and schedule


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
def test_impossible_layer_decay(layer_decay: float) -> None:
    with pytest.raises(ValueError, match=r"expected a factor per layer in \(0, 1\]"):
        param_groups(nn.Linear(2, 2), 1e-3, 0.1, layer_decay)


def test_schedule_warms_up_falls_and_saturates() -> None:
    factor = warmup_cosine(4, 20, floor=0.1)
    values = [factor(step) for step in range(40)]
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])
    assert all(a > b for a, b in pairwise(values[4:21]))
    assert values[12] == pytest.approx(0.55)  # half of the cosine
    assert values[20:] == pytest.approx([0.1] * 20)
    assert warmup_cosine(0, 10)(0) == 1.0


# ---- averaged weights


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
def test_impossible_ema(decay: float) -> None:
    with pytest.raises(ValueError, match="expected a number in"):
        EMA(decay)


# ---- the task


def test_a_little_training_learns(image_folder: Path) -> None:
    task, data = make_task(lr=0.01), make_data(image_folder)
    trainer = make_trainer(epochs=4, enable_checkpointing=False)
    trainer.fit(task, data)
    metrics = trainer.callback_metrics
    assert metrics["val/top1"] > 0.8
    assert "val/top5" not in metrics  # of three classes it would always be 1
    assert metrics["train/loss"] < math.log(3)


def test_metrics_are_means_over_images(image_folder: Path) -> None:
    """Also when batches differ in size, and classes too."""
    (image_folder / "class0" / "0.png").unlink()
    task = make_task()
    data = make_data(image_folder, val_fraction=0.4, batch_size=5)
    (result,) = make_trainer().validate(task, data, verbose=False)
    task.eval()
    batches = list(data.val_dataloader())
    assert len({len(y) for _, y in batches}) == 2
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = task(x)
    assert result["val/top1"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert result["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


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
def test_options_train(case: dict[str, Any], image_folder: Path) -> None:
    mix = {k: case[k] for k in case if k in ("mixup", "cutmix")}
    trainer_options = {k: case[k] for k in case if k in ("precision", "gradient_clip_val", "accumulate_grad_batches")}
    task = make_task(**{k: case[k] for k in case if k not in mix and k not in trainer_options})
    before = {name: p.clone() for name, p in task.named_parameters()}
    trainer = make_trainer(epochs=1, enable_checkpointing=False, **trainer_options)
    trainer.fit(task, make_data(image_folder, **mix))
    assert math.isfinite(trainer.callback_metrics["train/loss"])
    assert all(p.isfinite().all() for p in task.parameters())
    assert all(not torch.equal(before[name], p) for name, p in task.named_parameters() if p.ndim > 1)


def test_compile_leaves_the_keys_alone(image_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With a stand-in for the compiler, which takes a minute; the real one is among the slow tests of test_cli.py."""
    calls: list[int] = []

    def stand_in(self: nn.Module) -> None:
        def compiled(*args: Any, **kwargs: Any) -> Any:
            calls.append(len(args[0]))
            return type(self)._call_impl(self, *args, **kwargs)

        self._compiled_call_impl = compiled  # what nn.Module.compile sets

    monkeypatch.setattr(nn.Module, "compile", stand_in)
    task = make_task(compile=True, ema_decay=0.9)
    keys = list(task.state_dict())
    make_trainer(epochs=1, enable_checkpointing=False, limit_train_batches=1).fit(task, make_data(image_folder))
    assert calls
    assert list(task.state_dict()) == keys


def test_wrong_number_of_classes(image_folder: Path) -> None:
    with pytest.raises(ValueError, match=r"the data has 3 classes, but the model 5\. Build .*num_classes=3"):
        make_trainer(enable_checkpointing=False).fit(make_task(num_classes=5), make_data(image_folder))


def test_checkpoint_of_another_model(image_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(make_task(), make_data(image_folder))
    other = ClassificationTask("test_vit", num_classes=3, model_kwargs={"img_size": 32})
    with pytest.raises(ValueError, match="of another model: test_resnet with 3 classes; this run has test_vit with 3"):
        trainer = make_trainer(epochs=2, enable_checkpointing=False)
        trainer.fit(other, make_data(image_folder), ckpt_path=run.last, weights_only=True)
    again = ClassificationTask.load_from_checkpoint(run.best, weights_only=True)
    assert torch.equal(again.model.fc.weight, torch.load(run.best)["state_dict"]["model.fc.weight"])


def test_schedule_needs_epochs() -> None:
    loader = DataLoader(TensorDataset(torch.randn(4, 3, 32, 32), torch.zeros(4, dtype=torch.long)))
    trainer = make_trainer(epochs=-1, max_steps=2, enable_checkpointing=False)
    with pytest.raises(ValueError, match="the schedule needs the length of the run"):
        trainer.fit(make_task(), loader)


# ---- interrupted runs


def fit(folder: Path, image_folder: Path, *callbacks: L.Callback, resume: bool = False, epochs: int = 3) -> RunFolder:
    run = RunFolder(str(folder))
    torch.manual_seed(0)
    trainer = make_trainer(*callbacks, run, epochs=epochs)
    path = run.last if resume else None
    trainer.fit(make_task(ema_decay=0.9), make_data(image_folder), ckpt_path=path, weights_only=True)
    return run


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    return fit(folder / "run", make_image_folder(folder / "images"))


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
@pytest.mark.parametrize("place", [{"batch": 1}, {"batch": 2}, {"batch": None}], ids=["inside", "last", "validation"])
def test_signal_and_resume_give_the_uninterrupted_weights(
    number: signal.Signals,
    place: dict[str, Any],
    image_folder: Path,
    whole: RunFolder,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(Interrupted) as stop:
        fit(tmp_path / "cut", image_folder, CallAt(lambda: os.kill(os.getpid(), number), epoch=1, **place))
    assert stop.value.code == 128 + number
    assert f"{Path('cut/checkpoints/last.ckpt')}; pass it to Trainer.fit as ckpt_path" in capsys.readouterr().out
    assert signal.getsignal(number) == handler
    step = torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"]
    assert step == (5 if place["batch"] == 1 else 6)  # three steps an epoch: nothing computed is lost
    assert_same_run(whole, fit(tmp_path / "cut", image_folder, resume=True))


def test_second_interrupt_stops_at_once_and_keeps_the_epoch(
    image_folder: Path, whole: RunFolder, tmp_path: Path
) -> None:
    def twice() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)

    handler = signal.getsignal(signal.SIGINT)
    try:
        with pytest.raises(SystemExit):
            fit(tmp_path / "cut", image_folder, CallAt(twice, epoch=1))  # in a validation, on averaged weights
    finally:
        signal.signal(signal.SIGINT, handler)  # Lightning ignores further ones while it shuts down
    assert torch.load(tmp_path / "cut/checkpoints/last.ckpt", weights_only=True)["global_step"] == 3
    assert_same_run(whole, fit(tmp_path / "cut", image_folder, resume=True))


def test_a_run_can_be_prolonged(image_folder: Path, tmp_path: Path) -> None:
    fit(tmp_path / "run", image_folder, epochs=2)
    run = fit(tmp_path / "run", image_folder, resume=True, epochs=4)
    assert [row["epoch"] for row in run.history] == [1, 2, 3, 4]
    assert run.history[1]["lr"] < run.history[2]["lr"] > run.history[3]["lr"]  # the longer cosine is taken up
    assert len((tmp_path / "run/metrics.csv").read_text().splitlines()) == 5


# ---- full disk: the kernel refuses every file over the limit, as it refuses all on a full disk


def test_full_disk_in_between(
    image_folder: Path, whole: RunFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    full = no_large_files()
    enter = CallAt(full.__enter__, epoch=1, batch=0)
    leave = CallAt(lambda: full.__exit__(None, None, None), epoch=2, batch=0)
    run = fit(tmp_path / "run", image_folder, enter, leave)
    assert capsys.readouterr().out.count("could not save") == 1
    assert [row["epoch"] for row in run.history] == [1, 2, 3]
    assert torch.load(run.last, weights_only=True)["epoch"] == 2
    assert torch.equal(
        checkpoint_weights(run.last)["model.fc.weight"], checkpoint_weights(whole.last)["model.fc.weight"]
    )
    assert sorted(p.name for p in run.last.parent.iterdir()) == ["best.ckpt", "last.ckpt", "previous.ckpt"]


def test_full_disk_at_the_end(image_folder: Path, whole: RunFolder, tmp_path: Path) -> None:
    full = no_large_files()
    try:
        with pytest.raises(OSError, match=r"last epoch of the run could not be saved: .*as ckpt_path to resume"):
            fit(tmp_path / "run", image_folder, CallAt(full.__enter__, epoch=1, batch=0))
    finally:
        full.__exit__(None, None, None)
    last = tmp_path / "run/checkpoints/last.ckpt"
    assert torch.load(last, weights_only=True)["epoch"] == 0  # the first epoch's is whole
    assert_same_run(whole, fit(tmp_path / "run", image_folder, resume=True))


@pytest.mark.parametrize("batches", ["tensors", "lists of one tensor", "with positions"])
def test_predict_takes_a_loader_of_images_alone(batches: str) -> None:
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
