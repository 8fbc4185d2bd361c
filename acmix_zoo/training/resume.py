"""Compare the options of a command with the run that it resumes, and leave finished runs unchanged."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from acmix_zoo.models.task_kinds import TaskKind
from acmix_zoo.tasks.hyperparameters import resolve_hyperparameters
from acmix_zoo.training.history import format_scores
from acmix_zoo.training.option_rules import (
    Changes,
    Options,
    Rule,
    find_changes,
    given_values,
    recorded_arguments,
    recorded_values,
)
from acmix_zoo.weights.resolve import data_card

_PLACE = ("data.source",)  # the location of the data; the data module checks that the images are the same
_LENGTH = ("trainer.max_epochs", "trainer.min_epochs", "trainer.max_steps", "trainer.min_steps", "trainer.max_time")


@dataclass(frozen=True)
class Recorded:
    """What a checkpoint states about the run that it belongs to.

    Attributes:
        options: options of `fit`; only the model's options if a Python program wrote the checkpoint.
        epochs: number of completed epochs.
        steps: number of optimiser steps.
        is_within_epoch: whether the checkpoint was saved within an epoch.
        card: the value of `ResumableDataModule.card`; None for other data.
        hyper_parameters: the hyper-parameters of the task.
    """

    options: Options
    epochs: int
    steps: int
    is_within_epoch: bool
    card: dict[str, Any] | None = None
    hyper_parameters: Options = field(default_factory=dict)

    @property
    def is_from_python(self) -> bool:
        """Whether a Python program wrote the checkpoint, so that `options` are the task's hyper-parameters."""
        return self.options.keys() == {f"model.{name}" for name in self.hyper_parameters}


def read_recorded(checkpoint: Path) -> Recorded:
    """Read what a checkpoint states about its run, without loading the weights into memory.

    Args:
        checkpoint: a file, or a folder of sharded files from several processes.
    """
    file = checkpoint / "meta.pt" if checkpoint.is_dir() else checkpoint
    content = torch.load(file, map_location="cpu", weights_only=True, mmap=True)
    run = (content.get("callbacks") or {}).get("RunFolder") or {}
    history = run.get("history") or []
    steps = int(content.get("global_step", 0))
    hyper_parameters = dict(content.get("hyper_parameters") or {})
    return Recorded(
        options=run.get("options") or {f"model.{name}": value for name, value in hyper_parameters.items()},
        epochs=int(history[-1]["epoch"]) if history else 0,
        steps=steps,
        is_within_epoch=steps > (history[-1]["step"] if history else 0),
        card=dict(data_card(content)) or None,
        hyper_parameters=hyper_parameters,
    )


def match_python_run(recorded: Recorded, given: Options) -> tuple[Recorded, Options]:
    """Return a record and the options of a command such that they can be compared.

    A Python program has no options, and its task records its hyper-parameters after resolving them. Both sides are
    therefore resolved. The record of a command is returned unchanged.
    """
    if not recorded.is_from_python:
        return recorded, given
    model = {name.removeprefix("model."): value for name, value in given.items() if name.startswith("model.")}
    resolved = {f"model.{name}": value for name, value in resolve_hyperparameters(model, is_new=True).items()}
    old = {f"model.{name}": value for name, value in resolve_hyperparameters(recorded.hyper_parameters).items()}
    return replace(recorded, options=old), {**given, **resolved}


def check_resume(recorded: Recorded, given: Options, run_name: str) -> None:
    """Check that a run is not resumed with options that would change its result.

    Args:
        recorded: the record of the run.
        given: the options of the command.
        run_name: what to call the run, or its checkpoint, in the message.

    Raises:
        ValueError: an option under Rule.FIXED has changed, or fewer epochs are requested than have been trained.
    """
    fixed = find_changes(recorded.options, given, Rule.FIXED)
    if fixed:
        raise ValueError(
            f"{run_name} was started with {recorded_values(fixed)}, but this command has {given_values(fixed)}. These "
            f"options cannot change during a run. Resume with {recorded_arguments(fixed)}, or choose a different "
            "--run.folder for a new run, which may start from these weights with --model.pretrained"
        )
    epochs, trained = given.get("trainer.max_epochs"), recorded.epochs + recorded.is_within_epoch
    if isinstance(epochs, int) and 0 <= epochs < trained:
        raise ValueError(
            f"{run_name} has already reached epoch {trained}, but this command has --trainer.max_epochs {epochs}. Use "
            f"{trained} or more to resume, or choose a different --run.folder for a shorter run"
        )


def changes_to_record(recorded: Options, given: Options) -> Changes:
    """Return the changes to list in the run's record, because no single command would reproduce the run with them."""
    changed = find_changes(recorded, given, Rule.APPLIES, Rule.COMPARED)
    return {name: values for name, values in changed.items() if name not in _PLACE}


def check_finished(recorded: Recorded, given: Options, run_name: str) -> bool:
    """Return whether a finished run should stay unchanged. If not, it should be trained for longer.

    Args:
        recorded: the record of the run.
        given: the options of the command, already checked by `check_resume`.
        run_name: what to call the run in the message.

    Raises:
        ValueError: an option that affects the weights or their card has changed.
    """
    changed = find_changes(recorded.options, given, Rule.APPLIES, Rule.COMPARED)
    if changed.keys() & set(_LENGTH):
        return False
    patience = _early_stopping(recorded.options)
    is_stopped_early = patience and recorded.epochs < (recorded.options.get("trainer.max_epochs") or 0)
    if is_stopped_early and patience != _early_stopping(given):
        return False
    ignored = (*_PLACE, "trainer.callbacks", "trainer.plugins")
    late = {name: values for name, values in changed.items() if name not in ignored}
    if late:
        raise ValueError(
            f"{run_name} is finished and was trained with {recorded_values(late)}, but this command has "
            f"{given_values(late)}. Finished weights and their card are never changed. Choose a different --run.folder "
            "for a new run, or raise --trainer.max_epochs to train this one for longer"
        )
    return True


def _early_stopping(options: Options) -> list[Any]:
    """Return the settings of the EarlyStopping callbacks among the options of a command."""
    callbacks = options.get("trainer.callbacks")
    listed = callbacks if isinstance(callbacks, list) else [callbacks]
    return [item for item in listed if isinstance(item, dict) and str(item.get("class_path")).endswith("EarlyStopping")]


def finished_record(folder: Path, recorded: Recorded) -> dict[str, Any] | None:
    """Return the record of a finished run's weights, or None if the weights are not those of its last checkpoint.

    They are not if the run was interrupted, or if its weights could not be written.
    """
    weights = folder / "weights"
    if not (weights / "model.safetensors").is_file():
        return None
    try:
        record = json.loads((weights / "config.json").read_text(encoding="utf-8"))["acmix_zoo"]
        is_last = record["steps"] == recorded.steps
    except (OSError, ValueError, LookupError, TypeError):
        return None
    return dict(record) if is_last and not recorded.is_within_epoch else None


def finished_message(folder: Path, record: Mapping[str, Any], recorded: Recorded, task: TaskKind) -> str:
    """Return the message for a finished run: its scores, the location of its weights, and how to train longer."""
    planned = recorded.options.get("trainer.max_epochs") or recorded.epochs
    scores: dict[str, dict[str, float]] = {}
    for metric in record.get("metrics", []):
        scores.setdefault(metric["split"], {})[metric["name"]] = metric["value"]
    longer = f"To train for longer, run the same command with --trainer.max_epochs {2 * planned}"
    if recorded.epochs < planned:
        longer = "To train for longer, change what stopped it: --trainer.max_time, --trainer.max_steps or a callback"
    best = f"best epoch {record.get('best_epoch', 'unknown')}"
    return (
        f"The run in {folder} is finished: {recorded.epochs} of {planned} epochs, {best}"
        + (f"; {format_scores(scores, task)}" if scores else "")
        + f".\nIts weights are in {folder / 'weights'}. Nothing was changed.\n{longer}. For a new run, choose a "
        "different --run.folder."
    )
