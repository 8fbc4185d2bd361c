"""`RunState`: what every checkpoint of a run states about it, so that a resumed run continues its history."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from acmix_zoo.models.task_kinds import TaskKind
from acmix_zoo.training.history import Row, score
from acmix_zoo.training.option_rules import Options
from acmix_zoo.training.resume import changes_to_record


@dataclass
class RunState:
    """The state of a run, as plain values.

    Attributes:
        tag: second half of the name of the weights; None for the name of the data.
        license: license of the weights.
        command: the command line as given, for the record.
        recipe: the recipe that the command line names, for the record.
        options: all options of the command with their values, to compare with those of the run to be resumed.
        seed: the seed; None before the run starts.
        history: one row per epoch.
        best: `score` of the epoch in best.ckpt; None before the first epoch.
        epochs: planned length of the run.
        changes: options that were changed on resume.
        limits: limits of the trainer's evaluations, for runs without recorded options.
        parent: the record's entries about the weights that the run started from. They are only known at the start,
            because a network that is built for a checkpoint does not load those weights. None before the run starts.
        unfinished_seconds: how long the current epoch had taken when a checkpoint was saved within it; otherwise 0.
    """

    tag: str | None = None
    license: str | None = None
    command: str | None = None
    recipe: str | None = None
    options: Options = field(default_factory=dict)
    seed: int | None = None
    history: list[Row] = field(default_factory=list)
    best: list[float] | None = None
    epochs: int | None = None
    changes: list[dict[str, Any]] = field(default_factory=list)
    limits: dict[str, Any] = field(default_factory=dict)
    parent: dict[str, Any] | None = None
    unfinished_seconds: float = 0.0

    def add_epoch(self, row: Row, task: TaskKind) -> bool:
        """Add the row of an epoch to the history, and return whether it is the best so far. The first of equal ones
        is."""
        self.history.append(row)
        own = score(row, task)
        is_best = self.best is None or own > self.best
        if is_best:
            self.best = own
        return is_best

    def take_seconds(self, epoch: int) -> float:
        """Return how long an epoch has already taken when training starts or resumes.

        If max_steps ended the run within the epoch, the epoch already has a row. It is removed, because the epoch gets
        another one when it is complete.
        """
        if self.history and self.history[-1]["epoch"] == epoch:
            self.unfinished_seconds = self.history.pop()["seconds"]
        return self.unfinished_seconds

    def to_dict(self) -> dict[str, Any]:
        """Return the state for a checkpoint."""
        return dict(vars(self))

    def restore(self, saved: Mapping[str, Any], step: int) -> None:
        """Resume from the state in a checkpoint.

        The record keeps the command that started the run. If the new command changes how the run continues, for example
        with more epochs, the record gets the new command and lists the change. Changes of `run.tag`, `run.license` and
        `run.test` are not listed, because the new command alone repeats the run with them.

        Args:
            saved: what `to_dict` returned.
            step: the number of optimiser steps at the checkpoint.
        """
        self.history = list(saved["history"])
        self.best, self.seed, self.epochs = saved["best"], saved["seed"], saved.get("epochs")
        self.changes = list(saved.get("changes", []))
        self.parent, self.unfinished_seconds = saved.get("parent"), saved.get("unfinished_seconds", 0.0)
        changed = changes_to_record(saved.get("options") or {}, self.options)
        if listed := {name: list(values) for name, values in changed.items() if not name.startswith("run.")}:
            self.changes.append({"step": step, "options": listed})
        if not changed and saved.get("command"):
            self.command, self.recipe = saved["command"], saved.get("recipe")
