"""Resolve `--config`, so that `--config finetune/folder` works from any directory and after `pip install`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights.locate import HUB_PREFIX, WEIGHT_SUFFIXES, find_run
from acmix_zoo.weights.not_found import NotFoundError
from acmix_zoo.weights.recipe_files import locate_recipe


def with_config_files(argv: Sequence[str]) -> list[str]:
    """Return a command's arguments with every `--config` resolved to a file, see `config_file`.

    Raises:
        SystemExit: a file or recipe does not exist. The error has been printed.
    """
    words = list(argv)
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=") if word.startswith("-") else (argv[i - 1], "", word)
        if i and option in ("-c", "--config") and value:
            try:
                words[i] = (option + equals if equals else "") + config_file(value)
            except NotFoundError as error:
                Parser(f"acmix-zoo {argv[0]}").error(f"--config {error}")
    return words


def config_file(value: str) -> str:
    """Return the file that a `--config` refers to.

    Args:
        value: a recipe as in `locate_recipe`, which may be a run folder. YAML text, addresses and files of other
            formats, which jsonargparse accepts too, are returned unchanged.

    Raises:
        NotFoundError: there is no such recipe. The error lists the closest ones.
    """
    if any(mark in value for mark in "{\n") or ": " in value:  # YAML text
        return value
    is_address = ":" in value and not value.startswith(HUB_PREFIX) and find_run(Path(value)) is None
    if is_address or _is_text_file(Path(value)):
        return value
    return str(locate_recipe(value))


def _is_text_file(path: Path) -> bool:
    """Return whether a file can be a configuration, which may have any suffix, rather than weights."""
    return path.is_file() and path.suffix not in WEIGHT_SUFFIXES and path.name != "config.json"
