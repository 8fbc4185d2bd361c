"""Correct what a checkpoint states about a run before Lightning continues from it."""

from __future__ import annotations

from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import EarlyStopping


def correct_loaded_state(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Change the loaded content of a checkpoint such that the run continues as this trainer and the checkpoint say.

    Args:
        trainer: the trainer that resumes the run.
        checkpoint: the content, which Lightning has not used yet.
    """
    _keep_own_patience(trainer, checkpoint)
    if loops := checkpoint.get("loops"):
        _reopen_epoch(loops["fit_loop"])


def _keep_own_patience(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Keep the patience of this run's EarlyStopping. Lightning would restore the checkpoint's."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping) and (state := checkpoint.get("callbacks", {}).get(callback.state_key)):
            state["patience"] = callback.patience


def stop_again(trainer: L.Trainer) -> None:
    """End a resumed run that EarlyStopping had stopped. Lightning would train one more epoch first.

    Call it when training starts. If it is called earlier, Lightning skips the training and all its hooks, such as
    `on_train_end`.
    """
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, EarlyStopping):
            goal = callback.stopping_threshold
            is_reached = goal is not None and bool(callback.monitor_op(callback.best_score, torch.tensor(goal)))
            trainer.should_stop |= is_reached or callback.wait_count >= max(1, callback.patience)


def _reopen_epoch(state: dict[str, Any]) -> None:
    """Let an epoch that max_steps or max_time cut short continue where it stopped.

    Lightning counts it as processed and would skip the rest of its batches, or one epoch later on.
    """
    progress, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    is_counted = progress["current"]["processed"] == progress["current"]["started"] > 0
    if is_counted and batches["current"]["processed"] and not batches["is_last_batch"]:
        for count in progress.values():
            count["processed"] -= 1
