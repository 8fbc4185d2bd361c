"""Correct what a checkpoint states about a run before Lightning continues from it."""

from __future__ import annotations

from typing import Any

import lightning as L
from lightning.pytorch.callbacks import EarlyStopping


def correct_loaded_state(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Change the loaded content of a checkpoint such that the run continues as this trainer and the checkpoint say.

    Args:
        trainer: the trainer that resumes the run.
        checkpoint: the content, which Lightning has not used yet.
    """
    _keep_own_patience(trainer, checkpoint)
    _stop_where_it_stopped(trainer, checkpoint)
    if loops := checkpoint.get("loops"):
        _reopen_epoch(loops["fit_loop"])


def _keep_own_patience(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep the patience of this run's EarlyStopping. Lightning would restore the checkpoint's."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and (state := checkpoint.get("callbacks", {}).get(callback.state_key)):
            state["patience"] = callback.patience


def _stop_where_it_stopped(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """End a run that had run out of patience. Lightning does not store this, and would train one epoch more."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and (state := checkpoint.get("callbacks", {}).get(callback.state_key)):
            trainer.should_stop |= state["wait_count"] >= callback.patience


def _reopen_epoch(state: dict[str, Any]) -> None:
    """Let an epoch that max_steps or max_time cut short continue where it stopped.

    Lightning counts it as processed and would skip the rest of its batches, or one epoch later on.
    """
    progress, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    is_counted = progress["current"]["processed"] == progress["current"]["started"] > 0
    if is_counted and batches["current"]["processed"] and not batches["is_last_batch"]:
        for count in progress.values():
            count["processed"] -= 1
