"""How fast a training goes, what it waits for, and when it will be over."""

import os
import time
from collections import deque
from collections.abc import Callable
from statistics import fmean
from typing import Any

import lightning as L
import torch
from torch import nn

from acmix_zoo.training.limits import device_peak, loader_rate, training_flops, without_numbers

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name, in its profiler, for waiting for a batch
_WINDOW = 50  # batches, of the progress bar
_LOOK = 0.5  # seconds between two changes of the progress bar
_BAR = {"images_per_second": "images/s", "mfu": "MFU", "eta_minutes": "min_left"}
_STARVED = 0.2  # share of the time waited for data from which on there is something to do about it


class Speed(L.Callback):
    """Show and log images/s, the share of the time waited for data, MFU, and the minutes left.

    speed/images_per_second  of all processes; validation is not counted, everything between two steps is
    speed/data_wait          share of that time, 0..1, in which this process waited for its next batch
    speed/mfu                model FLOP/s over what the devices can do, 0..1: 6 MACs an image, 2 for a linear probe;
                             left out where the network cannot be counted or the device is unknown
    speed/eta_minutes        to the end of the last epoch, with the validations at their mean time so far; left out
                             where the run has no end

    In the loggers every `log_every_n_steps` they are of the last 50 batches; in `trainer.callback_metrics`, when an
    epoch ends, they are of the epoch. All are of what this process did: a resumed run starts anew, and its first batch,
    which may compile, is left out of the 50. GPUs work behind the program, so single steps say little there.

    Before the fit the loader is iterated alone; after the first epoch a line compares it with the training.

    Args:
        loader_seconds: how long, about, once as many batches as there are workers have come; 0: not at all.
        peak_flops: FLOP/s of a device at the run's precision. None: Lightning's table for GPUs; on a CPU a matrix
            product is measured on the run's threads.

    Raises:
        ValueError: a negative time, or no positive number of FLOP/s.
    """

    def __init__(self, loader_seconds: float = 1.0, peak_flops: float | None = None) -> None:
        if loader_seconds < 0:
            raise ValueError(f"loader_seconds={loader_seconds}: expected seconds, or 0 to leave the measurement out")
        if peak_flops is not None and peak_flops <= 0:
            raise ValueError(f"peak_flops={peak_flops}: expected FLOP/s of a device, such as 312e12")
        self.loader_seconds, self.peak_flops = loader_seconds, peak_flops
        self._loader: float | None = None  # images/s of the loader alone
        self._peak: float | None = None  # FLOP/s of a device
        self._twin: nn.Module | None = None  # the network without its numbers
        self._flops: float | None = None  # of an image, forward and backward
        self._new = True  # nothing has been trained on yet
        self._said = False
        self._total = float("inf")  # optimiser steps of the run
        self._mark = self._waited = self._looked = 0.0
        self._window: deque[tuple[float, float, int]] = deque(maxlen=_WINDOW)  # of batches: seconds, waited, images
        self._epoch = (0.0, 0.0, 0)  # the same, of the epoch
        self._validations: list[float] = []  # seconds
        self._let_go: Callable[[], None] | None = None

    # Before the fit.

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Measure the loader, before the trainer makes its own, and keep the network's form, before it is compiled or
        dealt to devices."""
        if stage != "fit":
            return
        model = getattr(pl_module, "model", None)
        self._twin = without_numbers(model) if isinstance(model, nn.Module) else None
        self._loader = None
        data = getattr(trainer, "datamodule", None)
        if self.loader_seconds and data is not None and not getattr(trainer, "fast_dev_run", False):
            trainer.strategy.barrier("loader")  # all processes at the same time, as in the training
            own = loader_rate(data.train_dataloader(), self.loader_seconds, _workers(trainer))
            rate = torch.tensor(own or float("nan"), device=trainer.strategy.root_device)
            total = float(trainer.strategy.reduce(rate, reduce_op="sum"))
            self._loader = total if total == total else None

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Find out what there is to do, and what the device could do."""
        self._window.clear()
        self._validations.clear()
        self._new, self._said = True, False
        self._total = trainer.estimated_stepping_batches
        self._peak = self.peak_flops or device_peak(trainer.strategy.root_device, str(trainer.precision))
        self._watch(trainer.profiler)  # type: ignore[attr-defined]
        self._begin()

    def _watch(self, profiler: Any) -> None:
        """Add up what Lightning's loop waits for batches; its profiler is told, whichever it is."""
        self._release()
        start, stop = profiler.start, profiler.stop
        began = 0.0

        def started(action: str) -> None:
            nonlocal began
            start(action)
            if action == _FETCH:
                began = time.perf_counter()

        def stopped(action: str) -> None:
            if action == _FETCH:
                self._waited += time.perf_counter() - began
            stop(action)

        def let_go() -> None:
            del profiler.start, profiler.stop  # the instance's; the class has its own

        profiler.start, profiler.stop, self._let_go = started, stopped, let_go

    def _release(self) -> None:
        if self._let_go is not None:
            self._let_go()
            self._let_go = None

    # The clock: from mark to mark, and stopped in validations.

    def _begin(self) -> None:
        self._epoch = (0.0, 0.0, 0)
        self._mark, self._waited = time.perf_counter(), 0.0

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Start an epoch's sums. An epoch that is gone on with has begun in on_train_start."""
        self._begin()

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        """With the first batch, when the size of the images is known, count the network's arithmetic."""
        if self._new:
            before = time.perf_counter()
            self._flops = training_flops(self._twin, tuple(batch[0].shape[1:])) if self._twin else None
            self._twin = None
            self._mark += time.perf_counter() - before

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a batch; after an optimiser step, log and show what is due."""
        now = time.perf_counter()
        step = (now - self._mark, self._waited, len(batch[0]) * trainer.world_size)
        self._mark, self._waited = now, 0.0
        self._epoch = (self._epoch[0] + step[0], self._epoch[1] + step[1], self._epoch[2] + step[2])
        if self._new:
            self._new = False
            return
        self._window.append(step)
        if (batch_idx + 1) % trainer.accumulate_grad_batches and not trainer.is_last_batch:
            return
        every: int = trainer.log_every_n_steps  # type: ignore[attr-defined]
        due = trainer.is_global_zero and trainer.global_step % every == 0
        look = trainer.progress_bar_callback is not None and now >= self._looked + _LOOK
        if due or look:  # pl_module.log would take longer, by itself, than a step of a small network
            seconds, waited, images = (sum(column) for column in zip(*self._window, strict=True))
            figures = self._figures(trainer, seconds, waited, images, 1)  # a validation may come before the next batch
        if due:
            for logger in trainer.loggers:
                logger.log_metrics({f"speed/{k}": v for k, v in figures.items()}, step=trainer.global_step - 1)
        if look:
            self._looked = now
            trainer.progress_bar_metrics.update({_BAR[k]: v for k, v in figures.items() if k in _BAR})

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Stop the clock of training."""
        self._validation_start = time.perf_counter()

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Go on with the clock of training."""
        if not trainer.sanity_checking:
            self._validations.append(time.perf_counter() - self._validation_start)
            self._mark += self._validations[-1]

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Give the epoch's figures to the callbacks behind this one; once, say how loader and training compare."""
        seconds, waited, images = self._epoch
        if not images:  # it was resumed after its last batch
            return
        figures = self._figures(trainer, seconds, waited, images, 0)
        trainer.callback_metrics.update({f"speed/{name}": torch.tensor(value) for name, value in figures.items()})
        if trainer.is_global_zero and not self._said:
            print(self._sentence(trainer, figures), flush=True)
        self._said = True

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Leave the profiler as it was."""
        self._release()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Leave the profiler as it was."""
        self._release()

    # The figures.

    def _figures(
        self, trainer: L.Trainer, seconds: float, waited: float, images: int, validations: int
    ) -> dict[str, float]:
        seconds = max(seconds, 1e-9)
        figures = {"images_per_second": images / seconds, "data_wait": waited / seconds}
        if self._flops and self._peak:
            figures["mfu"] = self._flops * images / seconds / (self._peak * trainer.world_size)
        if self._total != float("inf"):
            batches = (self._total - trainer.global_step) * trainer.accumulate_grad_batches
            a_batch = fmean(step[0] for step in self._window) if self._window else seconds
            figures["eta_minutes"] = batches * a_batch / 60
            if self._validations:
                every = (trainer.val_check_batch or float("inf")) * (trainer.check_val_every_n_epoch or 1)
                validations += int(batches // every)
                figures["eta_minutes"] += validations * fmean(self._validations) / 60
        return figures

    def _sentence(self, trainer: L.Trainer, figures: dict[str, float]) -> str:
        workers, text = _workers(trainer), ""
        if self._loader is not None:
            text = f"loader alone: {_rate(self._loader)} ({workers} worker{'s' * (workers != 1)}); "
        text += f"training: {_rate(figures['images_per_second'])}, "
        text += f"{100 * figures['data_wait']:.0f} % of the step waited for data"
        if "mfu" in figures and self._peak:
            devices = f"{trainer.world_size} × " if trainer.world_size > 1 else ""
            peak = f"{self._peak / 1e12:.3g} TFLOP/s" if self._peak >= 1e12 else f"{self._peak / 1e9:.3g} GFLOP/s"
            text += f", MFU {100 * figures['mfu']:.1f} % of {devices}{peak}"
        if figures["data_wait"] > _STARVED:
            cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
            text += (
                f"\nThe loader holds the training up: raise data.num_workers ({workers} now, {cores} cores)"
                if workers < cores
                else f"\nThe loader holds the training up with {workers} workers on {cores} cores: store the images at "
                "about the size that is trained on, or choose a lighter data.augment"
            )
        return text


def _workers(trainer: L.Trainer) -> int:
    """Loading processes beside each training process."""
    data = getattr(trainer, "datamodule", None)
    return int(getattr(data or trainer.train_dataloader, "num_workers", 0))


def _rate(value: float) -> str:
    return f"{value:,.0f} images/s" if value >= 10 else f"{value:.2g} images/s"
