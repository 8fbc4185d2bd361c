"""How fast a training run is, whether data loading is the bottleneck, and when it will end."""

from __future__ import annotations

import os
import time
from collections import deque
from statistics import fmean
from typing import Any

import lightning as L
import torch
from torch import nn

from acmix_zoo.training.clock import Interval, TrainingClock, add_intervals
from acmix_zoo.training.data_wait import DataWait
from acmix_zoo.training.history import format_duration
from acmix_zoo.training.limits import copy_to_meta, device_peak, measure_loader, training_flops

_WINDOW = 50  # batches that the progress bar and the loggers average over
_REFRESH = 0.5  # seconds between two updates of the progress bar
_BAR_NAMES = {"eta_minutes": "min_left"}
_VERBOSE_BAR_NAMES = {"images_per_second": "images/s", "mfu": "MFU", **_BAR_NAMES}
_ESTIMATE_SECONDS = 5.0  # time to measure before the first estimate; shorter epochs end with a line that has one
_BOTTLENECK = 0.2  # fraction of the time waiting for data from which data loading is called the bottleneck


class Speed(L.Callback):
    """Log and show images/s, the fraction of the time waiting for data, MFU, and the minutes left.

    speed/images_per_second  of all processes, between the starts of two steps, without validations
    speed/data_wait          fraction of that time, between 0 and 1, in which this process waited for its next batch
    speed/mfu                model FLOP/s over the peak of all devices, between 0 and 1, at 6 FLOPs per MAC, or 2 for a
                             linear probe; left out if the network cannot be counted or the device is unknown
    speed/eta_minutes        until the end of the last epoch, with the validations at their mean time so far; left out
                             if the run has no end

    Loggers receive the mean of the last 50 batches every `log_every_n_steps`, and `trainer.callback_metrics` the mean
    of each epoch. A resumed run starts from zero, and the first batch, which may include compilation, is not counted.
    GPUs run asynchronously, so single steps mean little there.

    A line about the time until the end is printed as soon as it can be estimated, and one after the first epoch if data
    loading is the bottleneck.

    Args:
        loader_seconds: if verbose, seconds to spend measuring the throughput of the loader alone at the start; 0 = off.
        peak_flops: peak FLOP/s of a device at the run's precision. null: taken from Lightning's table for a GPU, and
            measured with a matrix product on a CPU.
        verbose: also print a line after the first epoch that compares the throughput of training with that of the
            loader, and show throughput and MFU in the progress bar.

    Raises:
        ValueError: loader_seconds is negative, or peak_flops is not positive.
    """

    def __init__(self, loader_seconds: float = 1.0, peak_flops: float | None = None, verbose: bool = False) -> None:
        if loader_seconds < 0:
            raise ValueError(
                f"loader_seconds={loader_seconds} is negative. Expected seconds, or 0 to turn the measurement off"
            )
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops={peak_flops} is not positive. Expected the FLOP/s of a device, like 312e12")
        self.loader_seconds, self.peak_flops, self.verbose = loader_seconds, peak_flops, verbose
        self._loader_rate: float | None = None  # images/s of the loader alone
        self._peak: float | None = None  # FLOP/s of a device
        self._meta_model: nn.Module | None = None  # the network, without its weights
        self._flops: float | None = None  # per image, forward and backward
        self._image_shape: tuple[int, ...] = ()  # (C, H, W) of the images that `_flops` was counted for
        self._is_first_batch = True
        self._is_printed = False  # the line after the first epoch
        self._is_estimated = False  # whether the user has been told when the run will end
        self._total_steps = float("inf")  # optimiser steps of the run
        self._clock = TrainingClock()
        self._wait = DataWait()
        self._refreshed_at = 0.0
        self._window: deque[Interval] = deque(maxlen=_WINDOW)  # the last batches
        self._epoch = Interval()
        self._validations: list[float] = []  # seconds

    # Before the fit.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Measure the loader, before the trainer creates its own, and copy the network without its weights, before it
        is compiled or sharded."""
        if stage != "fit":
            return
        model = getattr(pl_module, "model", None)
        self._meta_model = copy_to_meta(model) if isinstance(model, nn.Module) else None
        self._loader_rate = None
        data = getattr(trainer, "datamodule", None)
        if self.verbose and self.loader_seconds and data is not None and not getattr(trainer, "fast_dev_run", False):
            trainer.strategy.barrier("loader")  # measure all processes at the same time, as in training
            own = measure_loader(data.train_dataloader(), self.loader_seconds, _count_workers(trainer))
            rate = torch.tensor(own or float("nan"), device=trainer.strategy.root_device)
            total = float(trainer.strategy.reduce(rate, reduce_op="sum"))
            self._loader_rate = total if total == total else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out the number of steps and the peak FLOP/s of the device."""
        self._window.clear()
        self._validations.clear()
        self._is_first_batch, self._is_printed, self._image_shape = True, False, ()
        self._is_estimated = False
        self._total_steps = trainer.estimated_stepping_batches
        self._peak = self.peak_flops or device_peak(trainer.strategy.root_device, str(trainer.precision))
        self._wait.attach(trainer.profiler)  # type: ignore[attr-defined]
        self._start_epoch()

    # Batches, validations and epochs.

    def _start_epoch(self) -> None:
        self._epoch = Interval()
        self._clock.start()
        self._wait.take()

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start an epoch. For an epoch that is resumed, `on_train_start` does this."""
        self._start_epoch()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """Count the network's FLOPs for the first batch, and again when the image size changes."""
        images = batch[0]
        # detectors get a list of images, whose sizes change from step to step
        shape = tuple(images.shape[1:] if isinstance(images, torch.Tensor) else trainer.datamodule.input_size)  # type: ignore[attr-defined]
        if shape != self._image_shape:
            start = time.perf_counter()
            self._flops = training_flops(self._meta_model, shape) if self._meta_model else None
            self._image_shape = shape
            self._window.clear()  # the last batches had a different size
            self._clock.skip(time.perf_counter() - start)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch. After an optimiser step, log and show the metrics if they are due."""
        step = Interval(self._clock.lap(), self._wait.take(), len(batch[0]) * trainer.world_size)
        self._epoch = add_intervals([self._epoch, step])
        if self._is_first_batch:
            self._is_first_batch = False
            return
        self._window.append(step)
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        if trainer.is_global_zero and not self._is_estimated:
            self._print_estimate(trainer)
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        now = time.perf_counter()
        is_logged = trainer.is_global_zero and every > 0 and trainer.global_step % every == 0
        is_shown = trainer.progress_bar_callback is not None and now >= self._refreshed_at + _REFRESH
        if not (is_logged or is_shown):  # computing them takes longer than a step of a small network
            return
        metrics = self._compute(trainer, add_intervals(self._window), 1)  # a validation may come before the next batch
        if is_logged:  # not by pl_module.log, which would take even longer
            for logger in trainer.loggers:
                logger.log_metrics({f"speed/{k}": v for k, v in metrics.items()}, step=trainer.global_step - 1)
        if is_shown:
            self._refreshed_at = now
            names = _VERBOSE_BAR_NAMES if self.verbose else _BAR_NAMES
            trainer.progress_bar_metrics.update({names[k]: v for k, v in metrics.items() if k in names})

    def _print_estimate(self, trainer: L.Trainer) -> None:
        """Print when the run will end, once enough batches have been measured."""
        measured = add_intervals(self._window)
        if measured.seconds < _ESTIMATE_SECONDS or len(self._window) < 2 or trainer.is_last_batch:
            return
        self._is_estimated = True
        metrics = self._compute(trainer, measured, 0)
        if "eta_minutes" not in metrics:
            return
        seconds = 60 * metrics["eta_minutes"]
        if not self._validations:  # without a backward pass, a batch takes about a third of the time
            epochs = max(0, (trainer.max_epochs or 0) - trainer.current_epoch)
            batches = sum(count for count in trainer.num_val_batches if count != float("inf"))
            per_batch = measured.seconds / len(self._window) / 3
            seconds += batches * per_batch * epochs / (trainer.check_val_every_n_epoch or 1)
        print(f"Estimated time until the end: {format_duration(seconds)}", flush=True)

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pause the clock."""
        self._clock.pause()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Continue the clock."""
        seconds = self._clock.unpause()
        if not trainer.sanity_checking:
            self._validations.append(seconds)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Pass the epoch's metrics to the callbacks after this one. After the first epoch, print what they mean."""
        if not self._epoch.images:  # the run was resumed after the epoch's last batch
            return
        metrics = self._compute(trainer, self._epoch, 0)
        trainer.callback_metrics.update({f"speed/{name}": torch.tensor(value) for name, value in metrics.items()})
        if trainer.is_global_zero and not self._is_printed and (text := self._message(trainer, metrics)):
            print(text, flush=True)
        self._is_printed = self._is_estimated = True  # the line of each epoch states the time that is left

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Restore the profiler."""
        self._wait.detach()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the profiler."""
        self._wait.detach()

    # The metrics.

    def _compute(self, trainer: L.Trainer, interval: Interval, validations: int) -> dict[str, float]:
        """Return the metrics of an interval.

        Args:
            validations: number of validations to expect in addition to those after the remaining batches.
        """
        seconds = max(interval.seconds, 1e-9)
        metrics = {"images_per_second": interval.images / seconds, "data_wait": interval.waited / seconds}
        if self._flops and self._peak:
            metrics["mfu"] = self._flops * interval.images / seconds / (self._peak * trainer.world_size)
        if self._total_steps != float("inf"):
            batches = (self._total_steps - trainer.global_step) * trainer.accumulate_grad_batches
            seconds_per_batch = fmean(step.seconds for step in self._window) if self._window else seconds
            metrics["eta_minutes"] = _weigh_by_size(trainer, batches) * seconds_per_batch / 60
            if self._validations:
                every = (trainer.val_check_batch or float("inf")) * (trainer.check_val_every_n_epoch or 1)
                validations += int(batches // every)
                metrics["eta_minutes"] += validations * fmean(self._validations) / 60
        return metrics

    def _message(self, trainer: L.Trainer, metrics: dict[str, float]) -> str:
        """Return the lines after the first epoch: the throughput if verbose, and whether loading is the bottleneck."""
        workers, lines = _count_workers(trainer), []
        if self.verbose:
            text = f"Training at {_format_rate(metrics['images_per_second'])}, "
            text += f"{100 * metrics['data_wait']:.0f} % of the time waiting for data"
            if "mfu" in metrics and self._peak:
                devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
                peak = f"{self._peak / 1e12:.3g} TFLOP/s" if self._peak >= 1e12 else f"{self._peak / 1e9:.3g} GFLOP/s"
                text += f", MFU {100 * metrics['mfu']:.1f} % of {devices}{peak}"
            if self._loader_rate is not None:
                name = f"{workers} worker{'s' * (workers != 1)}"
                text += f"; data loading alone reaches {_format_rate(self._loader_rate)} ({name})"
            lines.append(text)
        if metrics["data_wait"] > _BOTTLENECK:
            lines.append(_bottleneck_message(workers))
        return "\n".join(lines)


def _weigh_by_size(trainer: L.Trainer, batches: float) -> float:
    """Return how many batches of the current image size take as long as the next `batches` batches.

    A batch is assumed to take as long as it has pixels. This matters with the data module's `train_sizes`.
    """
    sizes = getattr(getattr(trainer, "datamodule", None), "train_sizes", None)
    if sizes is None or not sizes.sizes:
        return batches
    weighed, epoch = 0.0, trainer.current_epoch
    in_epoch = trainer.num_training_batches - trainer.fit_loop.epoch_loop.batch_progress.current.ready
    while batches > 0:
        count = min(batches, max(0, in_epoch))
        weighed += count * (sizes.size_in_epoch(epoch) / sizes.size_in_epoch(trainer.current_epoch)) ** 2
        batches -= count
        epoch, in_epoch = epoch + 1, trainer.num_training_batches
    return weighed


def _bottleneck_message(workers: int) -> str:
    """Return what to do if data loading is the bottleneck."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if workers < cores:
        return f"Data loading is the bottleneck; try --data.num_workers {min(cores, max(2, 2 * workers))}"
    return (
        f"Data loading is the bottleneck, with {workers} workers on {cores} cores. Store the images at about the "
        "training size, or try a lighter --data.augment"
    )


def _count_workers(trainer: L.Trainer) -> int:
    """Return the number of loader processes per training process."""
    data = getattr(trainer, "datamodule", None)
    return int(getattr(data or trainer.train_dataloader, "num_workers", 0))


def _format_rate(rate: float) -> str:
    return f"{rate:,.0f} images/s" if rate >= 10 else f"{rate:.2g} images/s"
