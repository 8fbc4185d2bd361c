"""`ScheduledTask`: the optimiser of a task, its learning-rate schedule, and the average of its weights."""

from __future__ import annotations

from collections.abc import Callable
from math import ceil, isfinite

import lightning as L
import torch
from lightning.pytorch.strategies import ModelParallelStrategy
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import nn

from acmix_zoo.tasks.ema import EMA
from acmix_zoo.tasks.optim import batch_size_factor, make_optimizer, warmup_cosine
from acmix_zoo.tasks.resumable_task import ResumableTask


class ScheduledTask(ResumableTask):
    """A task whose hyper-parameters are those of `acmix_zoo.tasks.Task`.

    Attributes:
        model: the network.
    """

    model: nn.Module

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimiser, and the schedule, which is stepped after every optimiser step."""
        h = self.hparams
        epochs = self.trainer.max_epochs
        if epochs is None or epochs < 1:
            raise ValueError(
                f"max_epochs={epochs}, but the schedule depends on the length of the run. Expected 1 or more. Set "
                "--trainer.max_epochs; in Python, use Trainer(max_epochs=...)"
            )
        total = int(self.trainer.estimated_stepping_batches)  # also creates the loaders
        batches = self.trainer.num_training_batches
        # a stream may not know its length; max_steps then sets that of the run
        epoch = ceil(batches / self.trainer.accumulate_grad_batches) if isfinite(batches) else total / epochs
        lr = h["lr"] * batch_size_factor(self.trainer, h["lr"], h["base_batch_size"])
        optimizer = make_optimizer(self.model, lr, h)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self.make_schedule(total, epoch))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def make_schedule(self, total: int, epoch: float) -> Callable[[int], float]:
        """Return the schedule, a function from the number of optimiser steps to a factor on the learning rate.

        Args:
            total: number of steps of the run.
            epoch: number of steps of an epoch.
        """
        h = self.hparams
        warmup = round(epoch * h["warmup_epochs"])
        return warmup_cosine(warmup, total, h["min_lr"] / h["lr"], h["warmup_lr"] / h["lr"])

    def configure_callbacks(self) -> list[L.Callback]:
        """Return the callback that averages the weights in a fit, if `ema_decay` is set."""
        decay = self.hparams["ema_decay"]
        if decay and isinstance(self.trainer.strategy, ModelParallelStrategy):
            raise ValueError(
                "ema_decay does not work with a network that is sharded over processes (ModelParallelStrategy). Set "
                "--model.ema_decay null, or use --trainer.strategy ddp"
            )
        return [EMA(decay)] if decay and self.trainer.state.fn == "fit" else []
