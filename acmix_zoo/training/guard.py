"""Stop a run when its loss or weights are no longer finite: save the batch for inspection, but not the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from torch import Tensor

_ADVICE = "To avoid this, start a new run with a lower model.lr, a longer model.warmup_epochs"


class NotFinite(ValueError):
    """The loss, or the weights, are NaN or infinite."""


class Step(NamedTuple):
    """A training step of this process.

    Attributes:
        batch: (images, targets) as the network got them, after mixing.
        number: the number of the batch in the epoch.
        loss: the loss; None before it is known.
    """

    batch: Any = None
    number: int = 0
    loss: Tensor | None = None


def loss_error(folder: Path, trainer: L.Trainer, step: Step, are_weights_changed: bool, resume: str) -> NotFinite:
    """Return the error for a loss that is NaN or infinite, in this or in another process. If it is in this one, write
    the batch to the run folder.

    Args:
        folder: the run folder.
        step: the step of this process.
        are_weights_changed: whether the weights have been updated with the loss.
        resume: a sentence that says how to resume the run.
    """
    if step.loss is not None and not bool(step.loss.isfinite()):
        where, value = _save_batch(folder, trainer, step, step.loss), f"{float(step.loss)}"
    else:  # the first process with such a loss reports it
        where, value = "the batch is in another process", "not finite"
    spared = "The affected weights were not saved." if are_weights_changed else "The weights were not changed by it."
    return NotFinite(
        f"the loss is {value} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; {where}. {spared} "
        f"{resume} {_ADVICE}, trainer.gradient_clip_val, or bf16-mixed instead of 16-mixed"
    )


def weights_error(step: int, resume: str) -> NotFinite:
    """Return the error for weights that are not finite.

    Args:
        step: number of optimiser steps so far.
        resume: a sentence that says how to resume the run.
    """
    return NotFinite(
        f"the weights are not finite after step {step}, so they were not saved. {resume} {_ADVICE}, or "
        "trainer.gradient_clip_val"
    )


def are_weights_finite(module: L.LightningModule) -> bool:
    """Return whether a module's weights and buffers are finite, so that a checkpoint of them is worth saving."""
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    finite = [t.isfinite().all() for t in tensors]
    # one check for all of them, because each check makes the host wait for the device
    plain = [value for value in finite if type(value) is Tensor]
    sharded = [value for value in finite if type(value) is not Tensor]  # each needs a small collective
    return (not plain or bool(torch.stack(plain).all())) and all(map(bool, sharded))


def _save_batch(folder: Path, trainer: L.Trainer, step: Step, loss: Tensor) -> str:
    """Write a batch as {images, targets, names, loss, epoch, step}, to be read by torch.load. Return where it is, or
    why it could not be written."""
    path = folder / f"not_finite_step{trainer.global_step}_rank{trainer.global_rank}.pt"
    images, targets = step.batch[0], step.batch[1]
    data: Any = getattr(trainer, "datamodule", None)
    names = data.describe_batch(step.number) if hasattr(data, "describe_batch") else []
    if len(names) != len(images):  # a file that failed earlier may be back: no names are better than wrong ones
        names = []
    content = {
        "images": images.detach().cpu().contiguous(),
        "targets": targets.detach().cpu(),
        "names": names,
        "loss": float(loss.detach()),
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
    }
    try:
        torch.save(content, path)
    except (OSError, RuntimeError) as error:
        return f"the batch could not be written to {path}: {error}"
    return f"the batch is in {path} (images, targets, names of the files)"
