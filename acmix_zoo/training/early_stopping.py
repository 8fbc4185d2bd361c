"""Lightning's EarlyStopping in runs: what it needs, how it is resumed, and why it stopped a run."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping

from acmix_zoo.data.wording import count_noun
from acmix_zoo.training.history import Row


def start_early_stopping(trainer: L.Trainer, history: Sequence[Row]) -> None:
    """Check that EarlyStopping gets its scores, and end a resumed run that it had stopped. Lightning would train one
    more epoch first.

    Call it when training starts. If it is called earlier, Lightning skips the training and all its hooks, such as
    `on_train_end`.

    Args:
        trainer: the trainer that starts or resumes the run.
        history: the finished epochs of the run.

    Raises:
        ValueError: EarlyStopping needs a score of the validation, and there is no validation.
    """
    has_images = trainer.val_dataloaders != []  # None: not loaded yet
    for callback in _callbacks(trainer):
        if not callback.strict or not callback.monitor.startswith("val/"):
            continue
        if not trainer.enable_validation or not has_images:
            reason = "there are no validation images" if trainer.enable_validation else "validation is turned off"
            raise ValueError(
                f"EarlyStopping (--patience of `acmix-zoo train`) needs {callback.monitor}, but {reason}. Expected a "
                "validation in every epoch. Set data.val_fraction to 0.1 or add a validation split, leave "
                "trainer.limit_val_batches at 1.0, or leave out EarlyStopping"
            )
    if history and history[-1]["epoch"] > trainer.current_epoch:  # unfinished; its row would be lost
        return
    trainer.should_stop |= any(_reason(callback, history) for callback in _callbacks(trainer))


def keep_own_patience(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Change a loaded checkpoint such that this run's patience applies. Lightning would restore the checkpoint's."""
    for callback in _callbacks(trainer):
        if state := checkpoint.get("callbacks", {}).get(callback.state_key):
            state["patience"] = callback.patience


def early_stop_line(trainer: L.Trainer, history: Sequence[Row]) -> str:
    """Return why EarlyStopping ended the run, or "" if it did not.

    Args:
        trainer: the trainer, at the end of the training.
        history: the finished epochs of the run.
    """
    reasons = [reason for callback in _callbacks(trainer) if (reason := _reason(callback, history))]
    if not reasons or len(history) >= (trainer.max_epochs or 0):
        return ""
    return f"Stopped early after epoch {len(history)} of {trainer.max_epochs}: {reasons[0]}"


def _callbacks(trainer: L.Trainer) -> Iterator[EarlyStopping]:
    return (each for each in trainer.callbacks if isinstance(each, EarlyStopping))  # type: ignore[attr-defined]


def _reason(callback: EarlyStopping, history: Sequence[Row]) -> str:
    """Return why the callback ends a run with this history, or "" if it does not.

    The callback's own state is not enough: it does not keep the score that reached a threshold. That may be one of an
    earlier epoch, because `min_epochs` lets the run continue.
    """
    name = callback.monitor
    for value in (torch.tensor(row[name]) for row in history if name in row):
        if callback.check_finite and not math.isfinite(value):
            return f"{name} is {value}"
        goal, limit = callback.stopping_threshold, callback.divergence_threshold
        if goal is not None and bool(callback.monitor_op(value, torch.tensor(goal))):
            return f"{name} has reached the stopping_threshold {goal}"
        if limit is not None and bool(callback.monitor_op(-value, torch.tensor(-limit))):
            return f"{name} has reached the divergence_threshold {limit}"
    if callback.wait_count >= max(1, callback.patience):
        unit = "validation" if name.startswith("val/") else "epoch"
        return f"{name} has not improved in {count_noun(callback.wait_count, unit)}"
    return ""
