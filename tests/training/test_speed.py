"""Speed while training: every figure by hand on a clock that the data and the network turn; and nothing disturbed."""

import copy
import csv
import random
import re
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import processes

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from PIL import Image
from support.streams import write_shards
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from acmix_zoo.data import ImageDataModule
from acmix_zoo.data.train_sizes import TrainSizes
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder, limits
from acmix_zoo.training.limits import copy_to_meta, device_peak, measure_loader, training_flops
from acmix_zoo.training.speed import Speed

BATCH, LOAD, STEP, VALID = 2, 0.5, 3.0, 7.0  # images; seconds an image, a training step, a validation step
STREAM = {"streaming": True, "epoch_images": 24, "num_workers": 1, "val_fraction": 0}
MACS = 3 * 4 * 4 * 2
PEAK = 4 * 0.5 * 6 * MACS  # FLOP/s: half an image a second is a quarter of it


class Clock:
    def __init__(self) -> None:
        self.now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr("acmix_zoo.training.speed.device_peak", lambda device, precision: PEAK)
    return clock


class Pictures(Dataset[tuple[Tensor, int]]):
    def __init__(self, size: int, clock: Clock) -> None:
        self.size, self.clock = size, clock

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.clock.now += LOAD
        return torch.randn(3, 4, 4), index % 2


class Data(L.LightningDataModule):
    def __init__(self, clock: Clock, size: int) -> None:
        super().__init__()
        self.clock, self.size = clock, size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pictures(self.size, self.clock), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(Pictures(2 * BATCH, self.clock), batch_size=BATCH)


class Task(L.LightningModule):
    def __init__(self, clock: Clock) -> None:
        super().__init__()
        self.clock, self.model = clock, nn.Sequential(nn.Flatten(), nn.Linear(48, 2))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        self.clock.now += STEP
        return nn.functional.cross_entropy(self.model(batch[0]), batch[1])

    def validation_step(self, batch: Any, batch_idx: int) -> None:
        self.clock.now += VALID

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Notebook(Logger):
    """What was logged, and what stood in `callback_metrics` at the end of each epoch."""

    name, version = "notebook", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "speed/images_per_second" in metrics:
            self.rows.append({"step": float(step or 0), **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def column(self, name: str) -> list[float]:
        return [row[f"speed/{name}"] for row in self.rows]


class Epochs(L.Callback):
    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.rows.append({name[6:]: float(metrics[name]) for name in metrics if name.startswith("speed/")})


def trainer_of(*callbacks: L.Callback, epochs: int = 2, **kwargs: Any) -> L.Trainer:
    quiet = {"enable_progress_bar": False, "enable_model_summary": False, "logger": False, "accelerator": "cpu"}
    quiet |= {"enable_checkpointing": False, "log_every_n_steps": 1}
    return L.Trainer(max_epochs=epochs, callbacks=list(callbacks), **{**quiet, **kwargs})


# ---- the figures


def test_every_figure_by_hand(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch takes 1 s to load and 3 s to train on; a validation of two batches takes 16 s; six batches an epoch."""
    notebook, epochs = Notebook(), Epochs()
    speed = Speed(loader_seconds=2.5, peak_flops=2 * PEAK)
    bar = ProgressBar()  # the class below all others: it keeps the figures and draws nothing
    trainer = trainer_of(speed, epochs, bar, logger=notebook, enable_progress_bar=True)
    trainer.fit(Task(clock), Data(clock, 12))

    assert [row["step"] for row in notebook.rows] == list(range(1, 12))  # the very first batch is not in the window
    assert notebook.column("images_per_second") == pytest.approx([0.5] * 11)
    assert notebook.column("data_wait") == pytest.approx([0.25] * 11)
    assert notebook.column("mfu") == pytest.approx([0.125] * 11)
    first = [(12 - done) * 4 for done in range(2, 7)]  # no validation seen
    second = [(12 - done) * 4 + 16 for done in range(7, 13)]
    assert notebook.column("eta_minutes") == pytest.approx([seconds / 60 for seconds in first + second])

    figures = {"images_per_second": 0.5, "data_wait": 0.25, "mfu": 0.125}
    assert epochs.rows[0] == pytest.approx({**figures, "eta_minutes": (6 * 4 + 16) / 60})
    assert epochs.rows[1] == pytest.approx({**figures, "eta_minutes": 0})

    out = capsys.readouterr().out
    assert out.count("data loading alone") == 1
    assert "; data loading alone reaches 2 images/s (0 workers)\n" in out  # the first batch is not timed
    assert "Training at 0.5 images/s, 25 % of the time waiting for data, MFU 12.5 % of " in out
    assert "Data loading is the bottleneck; try --data.num_workers " in out
    shown = bar.get_metrics(trainer, trainer.lightning_module)
    assert shown["images/s"] == 0.5 and shown["MFU"] == 0.125 and shown["min_left"] == pytest.approx(16 / 60)


def test_progressive_image_sizes(clock: Clock) -> None:
    """The MFU follows the size of the images, and the time left weighs the epochs to come by their pixels."""

    class Shrunk(Data):
        train_sizes = TrainSizes({0: 2, 1: 4}, 4)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer is not None
            return self.train_sizes.shrink(batch[0], self.trainer.current_epoch), batch[1]

    class AnySize(Task):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            self.model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    notebook, epochs = Notebook(), Epochs()
    trainer = trainer_of(Speed(), epochs, logger=notebook, limit_val_batches=0)
    trainer.fit(AnySize(clock), Shrunk(clock, 6))  # three batches per epoch
    assert epochs.rows[1]["mfu"] == pytest.approx(4 * epochs.rows[0]["mfu"])
    seconds = [1 * 4 + 3 * 4 * 4, 3 * 4 * 4, 2 * 4, 1 * 4, 0]
    assert notebook.column("eta_minutes") == pytest.approx([s / 60 for s in seconds])


def test_accumulated_batches_are_one_step(clock: Clock) -> None:
    notebook, epochs = Notebook(), Epochs()
    trainer = trainer_of(Speed(), epochs, logger=notebook, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(Task(clock), Data(clock, 12))
    assert notebook.column("images_per_second") == pytest.approx([0.5] * 6)
    assert notebook.column("eta_minutes") == pytest.approx([left * 2 * 4 / 60 for left in (5, 4, 3, 2, 1, 0)])
    assert epochs.rows[0]["eta_minutes"] == pytest.approx(6 * 4 / 60) and epochs.rows[0]["mfu"] == pytest.approx(0.25)


def test_a_change_shows_in_the_window_first(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faster(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.clock.now -= 0 if batch_idx < 10 else 2  # a step of 1 s
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("acmix_zoo.training.speed._WINDOW", 4)
    notebook, epochs = Notebook(), Epochs()
    trainer = trainer_of(Speed(), epochs, logger=notebook, epochs=1, limit_val_batches=0)
    trainer.fit(Faster(clock), Data(clock, 40))
    assert notebook.column("images_per_second")[8:13] == pytest.approx([8 / 16, 8 / 14, 8 / 12, 8 / 10, 8 / 8])
    assert epochs.rows[0]["images_per_second"] == pytest.approx(40 / (10 * 4 + 10 * 2))


def test_validations_within_an_epoch(clock: Clock) -> None:
    notebook = Notebook()
    trainer = trainer_of(Speed(), logger=notebook, epochs=1, val_check_interval=3)
    trainer.fit(Task(clock), Data(clock, 12))
    seconds = [4 * 4, 3 * 4, 2 * 4 + 16, 1 * 4 + 16, 16]  # with the one that may come before the next batch
    assert notebook.column("eta_minutes") == pytest.approx([s / 60 for s in seconds])
    assert notebook.column("images_per_second") == pytest.approx([0.5] * 5)


def test_a_run_by_steps_and_a_run_without_an_end(clock: Clock) -> None:
    notebook = Notebook()
    options: dict[str, Any] = {"limit_val_batches": 0, "logger": notebook, "epochs": -1}
    trainer_of(Speed(), max_steps=4, **options).fit(Task(clock), Data(clock, 12))
    assert notebook.column("eta_minutes") == pytest.approx([2 * 4 / 60, 4 / 60, 0])

    class Enough(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    notebook.rows.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns of endless runs
        trainer_of(Speed(), Enough(), **options).fit(Task(clock), Data(clock, 12))
    assert notebook.rows and "speed/eta_minutes" not in notebook.rows[0]


@pytest.mark.parametrize("place", ["inside", "end"])
def test_a_resumed_run_counts_what_it_did_itself(place: str, clock: Clock, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4 and place == "inside":
                trainer.save_checkpoint(tmp_path / "some.ckpt")

        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 6 and place == "end":
                trainer.save_checkpoint(tmp_path / "some.ckpt")

    trainer_of(Speed(), Save()).fit(Task(clock), Data(clock, 12))
    clock.now += 1e6  # until somebody comes back
    notebook, epochs = Notebook(), Epochs()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's, of a loader that keeps no position
        trainer_of(Speed(), epochs, logger=notebook).fit(Task(clock), Data(clock, 12), ckpt_path=tmp_path / "some.ckpt")
    assert notebook.column("images_per_second") == pytest.approx([0.5] * len(notebook.rows))
    assert [row["images_per_second"] for row in epochs.rows] == pytest.approx([0.5] * len(epochs.rows))
    assert notebook.rows[0]["step"] == (5 if place == "inside" else 7)
    assert notebook.column("eta_minutes")[0] == pytest.approx((6 if place == "inside" else 4) * 4 / 60)


def test_without_a_data_module(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = Epochs()
    trainer_of(Speed(), epochs, epochs=1).fit(Task(clock), DataLoader(Pictures(8, clock), batch_size=BATCH))
    assert epochs.rows[0]["images_per_second"] == 0.5
    out = capsys.readouterr().out
    assert "data loading alone" not in out and "Training at 0.5 images/s, 25 % of the time" in out


def test_a_network_that_cannot_be_counted(clock: Clock) -> None:
    class Peculiar(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) if float(x.sum()) < 1e9 else x

    task, epochs = Task(clock), Epochs()
    task.model = nn.Sequential(Peculiar(48, 2))
    trainer_of(Speed(), epochs, epochs=1).fit(task, Data(clock, 8))
    assert epochs.rows[0].keys() == {"images_per_second", "data_wait", "eta_minutes"}


def test_enough_data_brings_no_advice(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.clock.now += 20
            return super().training_step(batch, batch_idx)

    trainer_of(Speed(), epochs=1).fit(Slow(clock), Data(clock, 8))
    out = capsys.readouterr().out
    assert "4 % of the time waiting" in out and "bottleneck" not in out


def test_impossible_settings() -> None:
    with pytest.raises(ValueError, match="loader_seconds=-1 was given; expected seconds, or 0"):
        Speed(loader_seconds=-1)
    with pytest.raises(ValueError, match="peak_flops=0 was given; expected the FLOP/s"):
        Speed(peak_flops=0)


# ---- its parts


def test_arithmetic_of_a_network() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(4 * 64, 5))
    before = copy.deepcopy(model.state_dict())
    macs = 3 * 4 * 9 * 64 + 4 * 64 * 5
    twin = copy_to_meta(model)
    assert twin is not None and {p.device.type for p in twin.parameters()} == {"meta"}
    assert training_flops(twin, (3, 8, 8)) == 6 * macs
    model[0].requires_grad_(False)
    twin = copy_to_meta(model)
    assert twin is not None and training_flops(twin, (3, 8, 8)) == 2 * macs
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert model.training and training_flops(nn.Identity(), (3, 8, 8)) is None


def test_peak_of_a_cpu_is_measured_and_of_a_gpu_looked_up(monkeypatch: pytest.MonkeyPatch) -> None:
    state = torch.get_rng_state()
    peak = device_peak(torch.device("cpu"), "32-true")
    assert peak is not None and 1e8 < peak < 1e14
    assert torch.equal(state, torch.get_rng_state())
    asked = []
    monkeypatch.setattr(limits, "get_available_flops", lambda device, dtype: asked.append(dtype))
    for precision in ("32-true", "bf16-mixed", "16-mixed", "64-true"):
        assert device_peak(torch.device("cuda"), precision) is None
    assert asked == [torch.float32, torch.bfloat16, torch.float16, torch.float64]


def random_states() -> list[Any]:
    return [random.getstate(), np.random.get_state()[1].tolist(), torch.get_rng_state().tolist()]


class Noise(Dataset[tuple[Tensor, int]]):
    """Takes from every random state there is; complains of every picture."""

    def __len__(self) -> int:
        return 64

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        warnings.warn("left out", stacklevel=2)
        return torch.rand(3, 4, 4) * random.random() * float(np.random.rand()), index


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_loader_in_itself(workers: int, recwarn: pytest.WarningsRecorder) -> None:
    before = random_states()
    loader = DataLoader(Noise(), batch_size=4, shuffle=True, num_workers=workers)
    rate = measure_loader(loader, 0.2, workers)
    assert rate is not None and 10 < rate < 1e7
    assert random_states() == before
    assert not recwarn.list


def test_too_few_batches_to_tell() -> None:
    assert measure_loader(DataLoader(Noise(), batch_size=64), 1) is None
    assert measure_loader(DataLoader(Noise(), batch_size=32, num_workers=2), 1, workers=2) is None


# ---- with this project's own data and task


def make_pictures(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for c in range(2):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(16):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def train(source: Path, folder: Path, *callbacks: L.Callback, **options: Any) -> RunFolder:
    torch.manual_seed(0)
    run = RunFolder(str(folder))
    data = ImageDataModule(str(source), image_size=32, batch_size=6, augment="imagenet", mixup=0.2, **options)
    task = ClassificationTask("test_resnet", data.num_classes, model_kwargs={"drop_rate": 0.2}, ema_decay=0.9)
    trainer_of(run, *callbacks, enable_checkpointing=True).fit(task, data)
    return run


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 0}, pytest.param({"num_workers": 1}, marks=pytest.mark.slow), STREAM],
    ids=["0 workers", "1 worker", "stream"],
)
def test_weights_are_the_same_with_and_without(options: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "pictures"
    if "streaming" in options:
        write_shards(source, "parquet", [16, 16])
    else:
        make_pictures(source)
    plain = train(source, tmp_path / "plain", **options)
    watched = train(source, tmp_path / "watched", Speed(loader_seconds=0.1), **options)
    one, two = (torch.load(run.last, weights_only=True) for run in (plain, watched))
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    row = watched.history[-1]
    assert row["speed/images_per_second"] > 0 and 0 < row["speed/data_wait"] < 1 and 0 < row["speed/mfu"] < 1
    assert row["speed/eta_minutes"] == 0


def test_the_trainers_loader_stays_the_one_that_is_asked(tmp_path: Path) -> None:
    data = ImageDataModule(str(make_pictures(tmp_path / "pictures")), image_size=32, batch_size=6)
    seen = []

    class Ask(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, i: int) -> None:
            seen.append((trainer.train_dataloader.sampler.order()[i * 6].item(), data.describe_batch(i)[0]))

    task = ClassificationTask("test_resnet", num_classes=2)
    trainer = trainer_of(Speed(loader_seconds=0.1), Ask(), limit_val_batches=0)
    trainer.fit(task, data)
    dataset: Any = trainer.train_dataloader.dataset  # type: ignore[union-attr]
    assert len(seen) == 8 and [name for _, name in seen] == dataset.names([index for index, _ in seen])


def test_a_bad_image_is_told_once(tmp_path: Path) -> None:
    pictures = make_pictures(tmp_path / "pictures")
    data = ImageDataModule(str(pictures), image_size=32, batch_size=6, val_fraction=0)
    data.setup("fit")
    content = (pictures / "class0/3.png").read_bytes()
    (pictures / "class0/3.png").write_bytes(content[:60] + bytes(100) + content[160:])  # breaks after it was looked at
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        trainer_of(Speed(loader_seconds=5)).fit(ClassificationTask("test_resnet", num_classes=2), data)
    assert sum("skipped" in str(warning.message) for warning in told) == 1


def test_profilers_go_on_and_are_given_back(clock: Clock) -> None:
    profiler = SimpleProfiler()
    trainer = trainer_of(Speed(), Epochs(), epochs=1, profiler=profiler)
    trainer.fit(Task(clock), Data(clock, 8))
    assert profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
    assert "start" not in vars(profiler) and "stop" not in vars(profiler)

    class Fails(Task):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        trainer_of(Speed(), profiler=profiler).fit(Fails(clock), Data(clock, 8))
    assert "start" not in vars(profiler)


@pytest.mark.distributed
def test_two_processes_add_up_and_train_the_same(tmp_path: Path) -> None:
    for seconds in (0.3, 0):
        changes = {"trainer__devices": 2, "trainer__strategy": "ddp", "speed__loader_seconds": seconds}
        words = processes.torchrun(processes.fit(tmp_path / str(seconds), **changes), 2)
        said = processes.run(words, tmp_path / "log")
        assert said.count("data loading alone reaches ") == (1 if seconds else 0)
        assert re.search(r"Training at \d+ images/s, \d+ % of the time waiting for data, MFU [\d.]+ % of 2 × ", said)
    for row in csv.DictReader((tmp_path / "0.3/metrics.csv").open()):
        own, whole = float(row["speed/images_per_second"]), float(row["images_per_second"])
        assert 0.5 < own / whole < 2  # of both processes; the run folder's own includes what is between the steps
        assert 0 < float(row["speed/mfu"]) < 1 and 0 < float(row["speed/data_wait"]) < 1
    assert processes.differences(*(tmp_path / str(s) / "checkpoints/last.ckpt" for s in (0.3, 0))) == []
