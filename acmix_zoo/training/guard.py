"""Stop a run when its loss or weights are no longer finite. The batch is saved for inspection, the weights are not."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import lightning as L
import torch
from lightning.fabric.utilities import move_data_to_device
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from acmix_zoo.training.signals import Signals

if TYPE_CHECKING:
    from acmix_zoo.training.run import RunFolder

_ADVICE = "To avoid this, start a new run with a lower model.lr, a longer model.warmup_epochs"


class NotFinite(ValueError):
    """The loss, or the weights, are NaN or infinite."""


class Step(NamedTuple):
    """A training step of this process.

    Attributes:
        batch: (images, targets, …) as the network received them, after mixing.
        number: index of the batch in the epoch.
        loss: the loss; None before it is known.
    """

    batch: Any = None
    number: int = 0
    loss: Tensor | None = None


class LossGuard:
    """Raises NotFinite in all processes of a run if the loss of any of them is NaN or infinite.

    The host must not wait for a loss that a GPU has not computed yet. On a GPU, each loss is therefore checked one step
    later, and the last one before anything is saved.
    """

    def __init__(self) -> None:
        self._step = Step()
        self._unchecked = Step()  # on a GPU, the step before

    def start_step(self, batch: Any, number: int) -> None:
        """Note the batch that the next loss belongs to."""
        self._step = Step(batch, number)

    def check(self, run: RunFolder, trainer: L.Trainer, loss: Tensor, signals: Signals) -> int:
        """Check the loss of this step (on a GPU, of the previous one) together with the other processes.

        Returns:
            The signal that a process has received, or 0. It is exchanged in the same message.
        """
        step, is_delayed = self._step._replace(loss=loss.detach()), signals.is_delayed(loss.device)
        number, is_broken = signals.agree_delayed(loss.device, ~loss.detach().isfinite())
        if is_broken:
            raise _loss_error(run, trainer, self._unchecked if is_delayed else step, are_weights_changed=is_delayed)
        if is_delayed:
            self._unchecked = step
        return number

    def check_last(self, run: RunFolder, trainer: L.Trainer, signals: Signals) -> None:
        """Check the loss that `check` has not checked yet, if there is one."""
        if any(signals.flush_pending()[1:]):
            raise _loss_error(run, trainer, self._unchecked, are_weights_changed=True)


def _loss_error(run: RunFolder, trainer: L.Trainer, step: Step, are_weights_changed: bool) -> NotFinite:
    """Return the error for a loss that is NaN or infinite in any process. If it is this one, save the batch.

    Args:
        run: the run.
        trainer: its trainer.
        step: the step of this process.
        are_weights_changed: whether the weights have been updated with the loss.
    """
    if step.loss is not None and not bool(step.loss.isfinite()):
        where, value = _save_batch(run.folder, trainer, step, step.loss), f"{float(step.loss)}"
    else:  # the first process with such a loss reports it
        where, value = "the batch is in another process", "not finite"
    not_saved, not_updated = "The affected weights were not saved.", "This step did not update the weights."
    weights_note = not_saved if are_weights_changed else not_updated
    return NotFinite(
        f"the loss is {value} at epoch {trainer.current_epoch + 1}, step {trainer.global_step}; {where}. "
        f"{weights_note} {run.resume_message} {_ADVICE}, trainer.gradient_clip_val, or bf16-mixed instead of 16-mixed"
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
    """Save a batch as {images, targets, names, loss, epoch, step} with torch.save. Return a clause that says where it
    is, or why it could not be saved."""
    path = folder / f"not_finite_step{trainer.global_step}_rank{trainer.global_rank}.pt"
    images, targets = step.batch[0], step.batch[1]
    data: Any = getattr(trainer, "datamodule", None)
    names = data.describe_batch(step.number) if hasattr(data, "describe_batch") else []
    if len(names) != len(images):  # an unreadable file has become readable; no names are better than wrong ones
        names = []
    content = {
        "images": apply_to_collection(images, Tensor, lambda image: image.detach().cpu().contiguous()),
        "targets": move_data_to_device(targets, "cpu"),
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
