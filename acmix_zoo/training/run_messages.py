"""What a run prints while it trains: a block at the start, a line per epoch, and why it stopped early."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn

from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.wording import count_noun
from acmix_zoo.models.task_kinds import TaskKind
from acmix_zoo.tasks import Task
from acmix_zoo.training.history import Row, format_duration, score
from acmix_zoo.training.record import parent_name


def start_lines(
    trainer: L.Trainer, module: L.LightningModule, folder: Path | None, planned_epochs: int | None
) -> list[str]:
    """Return lines that describe what is trained, how, on which device, and where the run starts.

    Args:
        folder: the run folder; None for a dry run, which writes nothing.
        planned_epochs: number of epochs that the run had before it was resumed; None for a new run.
    """
    data = getattr(trainer, "datamodule", None)
    length = count_noun(trainer.max_epochs or 0, "epoch")
    if (batches := trainer.num_training_batches) != float("inf"):
        length += f" of {count_noun(math.ceil(batches / trainer.accumulate_grad_batches), 'step')}"
    images = f"; {data.describe_size()}" if isinstance(data, ResumableDataModule) else ""
    lines = [_model_line(module), f"Training: {length} on {_device(trainer)}{images}"]
    if isinstance(module, Task):
        lines += module.remarks()
    if trainer.global_step:
        return [*lines, *_resume_lines(trainer, planned_epochs)]
    return lines if folder is None else [*lines, f"New run in {folder}"]


def _model_line(module: L.LightningModule) -> str:
    """Return the network, its size and the weights that it starts from."""
    model = getattr(module, "model", module)
    hparams, cfg = module.hparams, getattr(model, "pretrained_cfg", None) or {}
    name = hparams.get("model") or type(model).__name__
    count = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
    parent = parent_name(hparams.get("pretrained"), cfg)
    start = f"fine-tuned from {parent}" if parent else "trained from scratch"
    return f"Model: {name} ({count / 1e6:.3g} M parameters), {start}"


def _device(trainer: L.Trainer) -> str:
    device: Any = trainer.strategy.root_device
    if device.type == "cpu":
        name = f"cpu ({count_noun(torch.get_num_threads(), 'thread')})"
    else:
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    if trainer.world_size > 1:
        name = f"{trainer.world_size} × {name}"
    return name if trainer.precision == "32-true" else f"{name}, {trainer.precision}"


def _resume_lines(trainer: L.Trainer, planned_epochs: int | None) -> list[str]:
    """Return at which step a run is resumed, and a warning if its schedule has changed."""
    steps = f"step {trainer.global_step} of {trainer.estimated_stepping_batches:.0f}"
    text = f"Resuming from epoch {trainer.current_epoch + 1} of {trainer.max_epochs} ({steps})"
    if planned_epochs in (None, trainer.max_epochs):
        return [text]
    return [
        text,
        f"Warning: schedule changed (planned for {planned_epochs} epochs, now {trainer.max_epochs}). The weights will "
        f"differ from those of a new run of {trainer.max_epochs} epochs",
    ]


def epoch_line(
    history: Sequence[Row], epochs: int, best: Sequence[float] | None, task: TaskKind, is_verbose: bool = False
) -> str:
    """Return a line about the last epoch.

    Args:
        history: a row for every epoch so far.
        epochs: number of epochs of the whole run.
        best: the `score` of the epoch whose weights are kept as the best; None if none could be saved.
        task: the task.
        is_verbose: whether to add the learning rate and the speed.
    """
    row, main = history[-1], f"val/{task.main_metric}"
    text = f"epoch {row['epoch']:.0f}/{epochs}: loss {row.get('train/loss', float('nan')):.4f}"
    if main in row:
        text += f" (validation {row['val/loss']:.4f})" if "val/loss" in row else ""
        text += f", {task.main_label} {100 * row[main]:.2f} %"
        # if several epochs are equal, the first one is the best
        best_row = next((r for r in history if main in r and score(r, task) == list(best or [])), None)
        if best_row is not None:
            text += f" (best {100 * best_row[main]:.2f} % in epoch {best_row['epoch']:.0f})"
    if row["epoch"] < epochs:
        minutes = row.get("speed/eta_minutes", (epochs - row["epoch"]) * row["seconds"] / 60)
        text += f", {format_duration(60 * minutes)} left"
    return f"{text}; {_speed(row)}" if is_verbose else text


def _speed(row: Row) -> str:
    parts = [f"learning rate {row['lr']:.3g}", f"{row['images_per_second']:.0f} images/s"]
    if "speed/data_wait" in row:
        parts.append(f"{100 * row['speed/data_wait']:.0f} % of the time waiting for data")
    if "speed/mfu" in row:
        parts.append(f"MFU {100 * row['speed/mfu']:.1f} %")
    return ", ".join(parts)
