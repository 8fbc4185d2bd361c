"""Find a learning rate: take a hundred steps, raise the rate with each, and look where the loss falls fastest.

Lightning's `LearningRateFinder` is not used, for two reasons. It gives the same rate to all parameter groups, which
undoes `layer_decay`. And it suggests the rate at which the slope of the loss over the rate, not over its logarithm, is
steepest. As the smallest rates lie close together, the noise of their losses is divided by tiny steps, and wins.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import lightning as L
import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.tasks.scheduled_task import ScheduledTask
from acmix_zoo.training.guard import NotFinite

Values = npt.NDArray[np.float64]

STEPS = 100
LOWEST, HIGHEST = 1e-7, 1.0
"""The range of `model.lr` that is tried, with about 14 steps for each factor of ten."""
_SMOOTHED = 15  # steps that the loss is averaged over, with weights that fall off on both sides
_RECENT = 5  # steps whose mean loss shows whether training diverges
_DIVERGED = 4.0  # times the lowest loss, as in Lightning and fastai
_CLEAR = 4.0  # standard errors by which the loss has to fall
_LEAST_FALL = 0.01  # and the fraction of it


class TriedRates(NamedTuple):
    """The loss at each learning rate. Both arrays have one value for each step.

    Attributes:
        rates: values of `model.lr`.
        losses: the training loss before the step, over the images of all processes.
    """

    rates: Values
    losses: Values

    def smooth_losses(self) -> Values:
        """Return the losses, (steps,), averaged over neighbouring steps."""
        inner = slice(_SMOOTHED // 2, _SMOOTHED // 2 + len(self.losses))
        sums, counts = (np.convolve(v, _weights())[inner] for v in (self.losses, np.ones_like(self.losses)))
        return np.asarray(sums / counts)  # there are fewer neighbours at both ends

    def suggest(self) -> float | None:
        """Return the rate at which the loss falls fastest over the logarithm of the rate, or None if it never falls by
        more than its noise."""
        smooth = self.smooth_losses()
        until = int(smooth.argmin()) + 1  # what comes later has diverged, or is about to
        fall = smooth[0] - smooth[until - 1]
        weights = _weights()
        first = weights[_SMOOTHED // 2 :]  # those that the first loss is averaged with
        error = np.hypot(np.linalg.norm(weights), np.linalg.norm(first / first.sum()))  # of a loss with an error of one
        noise = np.std((self.losses - smooth)[:until])
        if until <= _SMOOTHED or fall <= max(_CLEAR * error * noise, _LEAST_FALL * smooth[0]):
            return None
        slopes = np.gradient(smooth[:until], np.log(self.rates[:until]))
        return float(self.rates[slopes.argmin()])


def _weights() -> Values:
    """Return the weights of neighbouring losses, (_SMOOTHED,), which sum to one."""
    weights = np.hanning(_SMOOTHED + 2)[1:-1]
    return np.asarray(weights / weights.sum())


def find_learning_rate(trainer: L.Trainer, task: ScheduledTask, data: ResumableDataModule) -> TriedRates:
    """Train with rates from `LOWEST` to `HIGHEST`, until the loss diverges.

    The rates are values of `model.lr`: `base_batch_size` and `layer_decay` apply to them as in a run. Nothing is saved,
    logged or validated. The weights of `task` are useless afterwards, and the trainer cannot be used again.

    Args:
        trainer: a new trainer. Its callbacks and loggers are removed.
        task: a new task with its initial weights.
        data: the training data.

    Raises:
        NotFinite: the loss is NaN or infinite from the first step.
    """
    rates = np.geomspace(LOWEST, HIGHEST, STEPS)
    factors = rates / task.hparams["lr"]

    def factor(step: int) -> float:
        return float(factors[min(step, STEPS - 1)])  # the scheduler asks for one step more

    task.make_schedule = lambda total, epoch: factor  # type: ignore[method-assign]
    sweep = _Sweep()
    trainer.callbacks = [sweep]  # type: ignore[attr-defined]
    trainer.loggers = []
    trainer.limit_val_batches = 0
    trainer.fit(task, datamodule=data)
    losses = np.array(sweep.losses)
    if not math.isfinite(losses[0]):
        raise NotFinite(
            f"the loss is {losses[0]} in the first step, with a learning rate of {rates[0]:g}. Expected a finite loss, "
            "so the learning rate is not the reason. Check the images and the starting weights, and use bf16-mixed "
            "instead of 16-mixed"
        )
    losses = losses[np.isfinite(losses)]  # only the last one can be NaN
    return TriedRates(rates[: len(losses)], losses)


class _Sweep(L.Callback):
    """Note the loss of every optimiser step, and end the fit once it diverges.

    Attributes:
        losses: the losses so far.
    """

    def __init__(self) -> None:
        self.losses: list[float] = []
        self._batches: list[Tensor] = []  # losses of the batches that are accumulated

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Replace the length of the run, after its optimiser has been built."""
        trainer.fit_loop.max_epochs = -1
        trainer.fit_loop.epoch_loop.max_steps = STEPS

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self._batches.append(outputs["loss"] * trainer.accumulate_grad_batches)
        if trainer.global_step == len(self.losses):
            return  # more batches belong to this step
        loss = trainer.strategy.reduce(torch.stack(self._batches).mean(), reduce_op="mean")
        self._batches.clear()
        self.losses.append(float(loss))
        if has_diverged(self.losses):
            trainer.fit_loop.epoch_loop.max_steps = trainer.global_step


def has_diverged(losses: Sequence[float]) -> bool:
    """Return whether the last loss is NaN or infinite, or the last losses are far above the lowest and the first."""
    if not math.isfinite(losses[-1]):
        return True
    if len(losses) < 2 * _RECENT:
        return False
    means = np.convolve(losses, np.full(_RECENT, 1 / _RECENT), "valid")
    return bool(means[-1] > max(_DIVERGED * means.min(), means[0]))
