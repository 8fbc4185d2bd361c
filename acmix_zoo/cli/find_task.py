"""Find out which task a command of the trainer is about, before its options are parsed, because they depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import yaml  # type: ignore[import-untyped]

from acmix_zoo.cli.recorded_command import read_settings, split_options
from acmix_zoo.models.task_kinds import CLASSIFICATION, task_kind


def find_task(argv: Sequence[str]) -> str:
    """Return the name of the task that `--task` or the recipes of a command state. The last one counts.

    Args:
        argv: the command and its options, with every `--config` resolved to a file.

    Raises:
        ValueError: there is no such task.
    """
    task: object = CLASSIFICATION.name
    for name, *values in split_options(argv[1:]):
        if name == "--task" and values:
            return task_kind(values[0]).name
        if name == "--config" and values:
            task = _read(values[0]).get("task", task)
    return task_kind(task).name


def _read(config: str) -> dict[str, Any]:
    """Return the settings in a file or a YAML text, {} if it cannot be read, which the parser reports."""
    try:
        if any(mark in config for mark in "{\n"):
            settings = yaml.safe_load(config)
            return settings if isinstance(settings, dict) else {}
        return read_settings(config)
    except (yaml.YAMLError, UnicodeDecodeError, OSError):
        return {}
