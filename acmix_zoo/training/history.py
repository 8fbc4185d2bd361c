"""The history of a run, one row per epoch: as a table, which epoch is the best, and metrics as text."""

from __future__ import annotations

import csv
import math
from collections.abc import Mapping, Sequence
from pathlib import Path

import lightning as L

from acmix_zoo.models.task_kinds import TaskKind
from acmix_zoo.training.clock import TrainingClock

Row = dict[str, float]


def make_row(trainer: L.Trainer, clock: TrainingClock, images: int, is_validated: bool, earlier: float = 0.0) -> Row:
    """Return the row of the epoch that has just ended.

    Args:
        clock: started with the epoch, or when it was resumed.
        images: images that all processes have trained on since then.
        is_validated: whether the present weights were validated. Otherwise, the scores would be those of older weights.
        earlier: seconds of the epoch before the clock was started.
    """
    seconds = clock.elapsed()
    metrics = {name: float(value) for name, value in trainer.callback_metrics.items()}
    current = ("train/", "speed/", "val/") if is_validated else ("train/", "speed/")
    return {
        "epoch": float(trainer.current_epoch + 1),
        "step": float(trainer.global_step),
        **{name: value for name, value in metrics.items() if name.startswith(current)},
        "lr": max(group["lr"] for group in trainer.optimizers[0].param_groups),
        "seconds": earlier + seconds,
        "images_per_second": images / max(1e-9, seconds - clock.validation_seconds),
    }


def check_validation_schedule(trainer: L.Trainer) -> None:
    """Check that the last validation of an epoch comes at its end, because best.ckpt holds the weights of that moment.

    Raises:
        ValueError: it comes earlier.
    """
    batches, interval = trainer.num_training_batches, trainer.val_check_batch
    if not trainer.enable_validation or not isinstance(interval, int) or not math.isfinite(batches):
        return
    # without check_val_every_n_epoch, batches are counted over several epochs
    spans_epochs = trainer.check_val_every_n_epoch is None and interval % batches == 0
    if batches % interval and not spans_epochs:
        raise ValueError(
            f"trainer.val_check_interval {trainer.val_check_interval} validates after every {interval} batches, so an "
            f"epoch of {batches} batches would end without a validation, and its weights would have no score. Expected "
            f"an interval that divides {batches}, or 1.0 for once at the end of each epoch"
        )


def write_csv(path: Path, history: Sequence[Row]) -> None:
    """Write the history as a table. A failure is only printed, because checkpoints contain the history, too."""
    names = list(dict.fromkeys(name for row in history for name in row))
    try:
        with path.with_suffix(".new").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
        path.with_suffix(".new").replace(path)
    except OSError as error:
        print(
            f"Warning: could not write {path}: {error.strerror or error}. It is written again after the next epoch. "
            "Free some disk space",
            flush=True,
        )


def score(row: Row, task: TaskKind) -> list[float]:
    """Return the value by which epochs are compared. The best epoch has the largest.

    Epochs are compared by the main validation metric of the task, then by the validation loss if the task has one.
    Without validation, the last row is the best. An epoch that diverged can only be the best if all epochs diverged.
    """
    main = f"val/{task.main_metric}"
    if main not in row:
        return [-1.0, row["step"]]  # an epoch that max_steps cut short has a second row when it is complete
    loss = row.get("val/loss", 0.0)
    return [row[main], -loss] if math.isfinite(loss) and math.isfinite(row[main]) else [-2.0, 0.0]


def format_duration(seconds: float) -> str:
    """Return a duration as text: "45 s", "3 min 20 s" or "2 h 5 min"."""
    minutes, rest = divmod(round(seconds), 60)
    if minutes >= 60:
        return f"{minutes // 60} h {minutes % 60} min"
    return f"{minutes} min {rest} s" if minutes else f"{rest} s"


def format_scores(scores: Mapping[str, Mapping[str, float]], task: TaskKind) -> str:
    """Return the metrics of each split as text: "val top-1 91.20 %; test top-1 90.50 %, top-5 99.10 %"."""
    measured = {split: values for split, values in scores.items() if task.main_metric in values}
    return "; ".join(f"{split} {format_metrics(values, task)}" for split, values in measured.items())


def format_metrics(scores: Mapping[str, float], task: TaskKind) -> str:
    """Return the metrics among the scores of a split as text: "top-1 90.50 %, top-5 99.10 %"."""
    return ", ".join(f"{label} {100 * scores[name]:.2f} %" for name, label in task.metrics.items() if name in scores)
