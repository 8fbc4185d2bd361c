"""Accept the names that options had in earlier versions, in recorded commands and in the config.yaml of old runs."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

RENAMED_OPTIONS = {
    "data.max_bad": "data.max_unreadable",
    "data.predict_source": "data.predict",
    "model.lr_batch": "model.base_batch_size",
}
"""The present name of each option that has been renamed."""


def with_current_options(argv: Sequence[str]) -> list[str]:
    """Return the arguments of a command with the present names of its options."""
    words = []
    for word in argv:
        option, equals, value = word.partition("=")
        name = RENAMED_OPTIONS.get(option.removeprefix("--")) if option.startswith("--") else None
        words.append(f"--{name}{equals}{value}" if name else word)
    return words


def with_current_keys(config: Any) -> Any:
    """Return the content of a configuration file with the present names of its options."""
    if not isinstance(config, dict):
        return config
    current = {key: dict(value) if isinstance(value, dict) else value for key, value in config.items()}
    for old, new in RENAMED_OPTIONS.items():
        (group, old_key), new_key = old.split("."), new.split(".")[1]
        options = current.get(group)
        if isinstance(options, dict) and old_key in options:
            options.setdefault(new_key, options.pop(old_key))
    return current
