"""Training speed: every metric is checked by hand on a simulated clock."""

import time
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from lightning.pytorch.loggers import Logger
from lightning.pytorch.profilers import SimpleProfiler
from support.training import make_trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from acmix_zoo.data.train_sizes import TrainSizes
from acmix_zoo.training.history import format_duration
from acmix_zoo.training.speed import Speed

BATCH, LOAD, STEP, VALID = 2, 0.5, 3.0, 7.0  # images; seconds per image, training step, validation step
MACS = 3 * 4 * 4 * 2
PEAK = 4 * 0.5 * 6 * MACS  # FLOP/s; 0.5 images/s use a quarter of it


class Clock:
    """A replacement of time.perf_counter, which the data and the task below move forward."""

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


class TimedImages(Dataset[tuple[Tensor, int]]):
    def __init__(self, size: int, clock: Clock) -> None:
        self.size, self.clock = size, clock

    def __len__(self) -> int:
        return self.size

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        self.clock.now += LOAD
        return torch.randn(3, 4, 4), index % 2


class TimedData(L.LightningDataModule):
    def __init__(self, clock: Clock, size: int) -> None:
        super().__init__()
        self.clock, self.size = clock, size

    def train_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TimedImages(self.size, self.clock), batch_size=BATCH)

    def val_dataloader(self) -> DataLoader[Any]:
        return DataLoader(TimedImages(2 * BATCH, self.clock), batch_size=BATCH)


class TimedTask(L.LightningModule):
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


class RecordingLogger(Logger):
    """A logger that keeps the rows with speed metrics."""

    name, version = "recording", 0

    def __init__(self) -> None:
        super().__init__()
        self.rows: list[dict[str, float]] = []

    def log_metrics(self, metrics: dict[str, float], step: int | None = None) -> None:
        if "speed/images_per_second" in metrics:
            self.rows.append({"step": float(step or 0), **metrics})

    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None: ...

    def column(self, name: str) -> list[float]:
        return [row[f"speed/{name}"] for row in self.rows]


class EpochMetrics(L.Callback):
    """The speed metrics in `callback_metrics` at the end of each epoch."""

    def __init__(self) -> None:
        self.rows: list[dict[str, float]] = []

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics
        self.rows.append({name[6:]: float(metrics[name]) for name in metrics if name.startswith("speed/")})


def quiet_trainer(*callbacks: L.Callback, epochs: int = 2, **kwargs: Any) -> L.Trainer:
    return make_trainer(*callbacks, epochs=epochs, enable_checkpointing=False, **{"log_every_n_steps": 1, **kwargs})


# ---- the metrics


def test_every_metric_by_hand(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    """A batch takes 1 s to load and 3 s to train on. An epoch has six batches, and its validation takes 16 s."""
    logger, epochs = RecordingLogger(), EpochMetrics()
    speed = Speed(loader_seconds=2.5, peak_flops=2 * PEAK, verbose=True)
    bar = ProgressBar()  # the base class, which keeps the metrics and draws nothing
    trainer = quiet_trainer(speed, epochs, bar, logger=logger, enable_progress_bar=True)
    trainer.fit(TimedTask(clock), TimedData(clock, 12))

    assert [row["step"] for row in logger.rows] == list(range(1, 12))  # the first batch is not timed
    assert logger.column("images_per_second") == pytest.approx([0.5] * 11)
    assert logger.column("data_wait") == pytest.approx([0.25] * 11)
    assert logger.column("mfu") == pytest.approx([0.125] * 11)
    first = [(12 - done) * 4 for done in range(2, 7)]  # no validation has been timed yet
    second = [(12 - done) * 4 + 16 for done in range(7, 13)]
    assert logger.column("eta_minutes") == pytest.approx([seconds / 60 for seconds in first + second])

    expected = {"images_per_second": 0.5, "data_wait": 0.25, "mfu": 0.125}
    assert epochs.rows[0] == pytest.approx({**expected, "eta_minutes": (6 * 4 + 16) / 60})
    assert epochs.rows[1] == pytest.approx({**expected, "eta_minutes": 0})

    out = capsys.readouterr().out
    assert out.count("data loading alone") == 1
    assert "; data loading alone reaches 2 images/s (0 workers)\n" in out  # the first batch is not timed
    assert "Training at 0.5 images/s, 25 % of the time waiting for data, MFU 12.5 % of " in out
    assert "Data loading is the bottleneck; try --data.num_workers " in out
    # printed after three batches: nine more take 36 s, and the batches of two validations a third of that each
    validation = 2 * sum(trainer.num_val_batches) * 4 / 3
    assert out.count(f"Estimated time until the end: {format_duration(9 * 4 + validation)}\n") == 1
    shown = bar.get_metrics(trainer, trainer.lightning_module)
    assert shown["images/s"] == 0.5 and shown["MFU"] == 0.125 and shown["min_left"] == pytest.approx(16 / 60)


def test_progressive_image_sizes_change_mfu_and_remaining_time(clock: Clock) -> None:
    """The MFU follows the size of the images, and the time left weighs the epochs to come by their pixels."""

    class ShrinkingData(TimedData):
        train_sizes = TrainSizes({0: 2, 1: 4}, 4)

        def on_after_batch_transfer(self, batch: Any, dataloader_idx: int) -> Any:
            assert self.trainer is not None
            return self.train_sizes.shrink(batch[0], self.trainer.current_epoch), batch[1]

    class AnySizeTask(TimedTask):
        def __init__(self, clock: Clock) -> None:
            super().__init__(clock)
            self.model = nn.Sequential(nn.Conv2d(3, 2, 1), nn.AdaptiveAvgPool2d(1), nn.Flatten())

    logger, epochs = RecordingLogger(), EpochMetrics()
    trainer = quiet_trainer(Speed(), epochs, logger=logger, limit_val_batches=0)
    trainer.fit(AnySizeTask(clock), ShrinkingData(clock, 6))  # three batches per epoch
    assert epochs.rows[1]["mfu"] == pytest.approx(4 * epochs.rows[0]["mfu"])
    seconds = [1 * 4 + 3 * 4 * 4, 3 * 4 * 4, 2 * 4, 1 * 4, 0]
    assert logger.column("eta_minutes") == pytest.approx([s / 60 for s in seconds])


def test_accumulated_batches_are_one_step(clock: Clock) -> None:
    logger, epochs = RecordingLogger(), EpochMetrics()
    trainer = quiet_trainer(Speed(), epochs, logger=logger, accumulate_grad_batches=2, limit_val_batches=0)
    trainer.fit(TimedTask(clock), TimedData(clock, 12))
    assert logger.column("images_per_second") == pytest.approx([0.5] * 6)
    assert logger.column("eta_minutes") == pytest.approx([left * 2 * 4 / 60 for left in (5, 4, 3, 2, 1, 0)])
    assert epochs.rows[0]["eta_minutes"] == pytest.approx(6 * 4 / 60) and epochs.rows[0]["mfu"] == pytest.approx(0.25)


def test_logged_throughput_follows_the_latest_batches(clock: Clock, monkeypatch: pytest.MonkeyPatch) -> None:
    class Faster(TimedTask):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.clock.now -= 0 if batch_idx < 10 else 2  # a step of 1 s
            return super().training_step(batch, batch_idx)

    monkeypatch.setattr("acmix_zoo.training.speed._WINDOW", 4)
    logger, epochs = RecordingLogger(), EpochMetrics()
    trainer = quiet_trainer(Speed(), epochs, logger=logger, epochs=1, limit_val_batches=0)
    trainer.fit(Faster(clock), TimedData(clock, 40))
    assert logger.column("images_per_second")[8:13] == pytest.approx([8 / 16, 8 / 14, 8 / 12, 8 / 10, 8 / 8])
    assert epochs.rows[0]["images_per_second"] == pytest.approx(40 / (10 * 4 + 10 * 2))


def test_nothing_is_logged_every_zero_steps(clock: Clock) -> None:
    logger = RecordingLogger()
    trainer = quiet_trainer(Speed(), logger=logger, epochs=1, log_every_n_steps=0)
    trainer.fit(TimedTask(clock), TimedData(clock, 12))
    assert logger.column("eta_minutes") == []


def test_the_remaining_time_includes_validations_within_an_epoch(clock: Clock) -> None:
    logger = RecordingLogger()
    trainer = quiet_trainer(Speed(), logger=logger, epochs=1, val_check_interval=3)
    trainer.fit(TimedTask(clock), TimedData(clock, 12))
    seconds = [4 * 4, 3 * 4, 2 * 4 + 16, 1 * 4 + 16, 16]  # including a validation that may precede the next batch
    assert logger.column("eta_minutes") == pytest.approx([s / 60 for s in seconds])
    assert logger.column("images_per_second") == pytest.approx([0.5] * 5)


def test_the_remaining_time_of_a_run_by_steps_and_of_an_endless_run(clock: Clock) -> None:
    logger = RecordingLogger()
    options: dict[str, Any] = {"limit_val_batches": 0, "logger": logger, "epochs": -1}
    quiet_trainer(Speed(), max_steps=4, **options).fit(TimedTask(clock), TimedData(clock, 12))
    assert logger.column("eta_minutes") == pytest.approx([2 * 4 / 60, 4 / 60, 0])

    class StopAfterFirstEpoch(L.Callback):
        def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            trainer.should_stop = True

    logger.rows.clear()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns about endless runs
        quiet_trainer(Speed(), StopAfterFirstEpoch(), **options).fit(TimedTask(clock), TimedData(clock, 12))
    assert logger.rows and "speed/eta_minutes" not in logger.rows[0]


@pytest.mark.parametrize("saved_at", ["within an epoch", "end of an epoch"])
def test_a_resumed_run_is_timed_from_where_it_resumed(saved_at: str, clock: Clock, tmp_path: Path) -> None:
    class Save(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 4 and saved_at == "within an epoch":
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

        def on_train_epoch_end(self, trainer: L.Trainer, *args: Any) -> None:
            if trainer.global_step == 6 and saved_at == "end of an epoch":
                trainer.save_checkpoint(tmp_path / "saved.ckpt")

    quiet_trainer(Speed(), Save()).fit(TimedTask(clock), TimedData(clock, 12))
    clock.now += 1e6  # the time until somebody resumes the run
    logger, epochs = RecordingLogger(), EpochMetrics()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning warns that the loader has no position to resume
        quiet_trainer(Speed(), epochs, logger=logger).fit(
            TimedTask(clock), TimedData(clock, 12), ckpt_path=tmp_path / "saved.ckpt"
        )
    assert logger.column("images_per_second") == pytest.approx([0.5] * len(logger.rows))
    assert [row["images_per_second"] for row in epochs.rows] == pytest.approx([0.5] * len(epochs.rows))
    assert logger.rows[0]["step"] == (5 if saved_at == "within an epoch" else 7)
    assert logger.column("eta_minutes")[0] == pytest.approx((6 if saved_at == "within an epoch" else 4) * 4 / 60)


def test_a_loader_without_a_data_module_is_not_measured_alone(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    epochs = EpochMetrics()
    speed = Speed(verbose=True)
    quiet_trainer(speed, epochs, epochs=1).fit(TimedTask(clock), DataLoader(TimedImages(8, clock), batch_size=BATCH))
    assert epochs.rows[0]["images_per_second"] == 0.5
    out = capsys.readouterr().out
    assert "data loading alone" not in out and "Training at 0.5 images/s, 25 % of the time" in out


def test_a_network_that_cannot_be_counted_has_no_mfu(clock: Clock) -> None:
    class DataDependent(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x.flatten(1)) if float(x.sum()) < 1e9 else x

    task, epochs = TimedTask(clock), EpochMetrics()
    task.model = nn.Sequential(DataDependent(48, 2))
    quiet_trainer(Speed(), epochs, epochs=1).fit(task, TimedData(clock, 8))
    assert epochs.rows[0].keys() == {"images_per_second", "data_wait", "eta_minutes"}


def test_a_fast_loader_is_not_called_the_bottleneck(clock: Clock, capsys: pytest.CaptureFixture[str]) -> None:
    class Slow(TimedTask):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            self.clock.now += 20
            return super().training_step(batch, batch_idx)

    quiet_trainer(Speed(verbose=True), epochs=1).fit(Slow(clock), TimedData(clock, 8))
    out = capsys.readouterr().out
    assert "4 % of the time waiting" in out and "bottleneck" not in out


def test_impossible_arguments_are_rejected() -> None:
    with pytest.raises(ValueError, match=r"loader_seconds=-1 is negative\. Expected seconds, or 0"):
        Speed(loader_seconds=-1)
    with pytest.raises(ValueError, match=r"peak_flops=0 is not positive\. Expected the FLOP/s"):
        Speed(peak_flops=0)


def test_profilers_keep_working_and_are_restored(clock: Clock) -> None:
    profiler = SimpleProfiler()
    trainer = quiet_trainer(Speed(), EpochMetrics(), epochs=1, profiler=profiler)
    trainer.fit(TimedTask(clock), TimedData(clock, 8))
    assert profiler.recorded_durations["[_TrainingEpochLoop].train_dataloader_next"]
    assert "start" not in vars(profiler) and "stop" not in vars(profiler)

    class FailingTask(TimedTask):
        def training_step(self, batch: Any, batch_idx: int) -> Tensor:
            raise RuntimeError("broken")

    with pytest.raises(RuntimeError, match="broken"):
        quiet_trainer(Speed(), profiler=profiler).fit(FailingTask(clock), TimedData(clock, 8))
    assert "start" not in vars(profiler)
