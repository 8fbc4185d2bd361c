"""Correct what a checkpoint states about a run before Lightning continues from it."""

from __future__ import annotations

from typing import Any

import lightning as L

from acmix_zoo.training.early_stopping import keep_own_patience


def correct_loaded_state(trainer: L.Trainer, checkpoint: dict[str, Any]) -> None:
    """Change the loaded content of a checkpoint such that the run continues as this trainer and the checkpoint say.

    Args:
        trainer: the trainer that resumes the run.
        checkpoint: the content, which Lightning has not used yet.
    """
    keep_own_patience(trainer, checkpoint)
    if loops := checkpoint.get("loops"):
        _reopen_epoch(loops["fit_loop"])


def _reopen_epoch(state: dict[str, Any]) -> None:
    """Let an epoch that max_steps or max_time cut short continue where it stopped.

    Lightning counts it as processed and would skip the rest of its batches, or one epoch later on.
    """
    progress, batches = state["epoch_progress"], state["epoch_loop.batch_progress"]
    is_counted = progress["current"]["processed"] == progress["current"]["started"] > 0
    if is_counted and batches["current"]["processed"] and not batches["is_last_batch"]:
        for count in progress.values():
            count["processed"] -= 1
