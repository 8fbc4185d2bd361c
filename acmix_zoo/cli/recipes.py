"""Resolve `--config`, so that `--config finetune/folder` works from any directory and after `pip install`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights.shipped import find_recipe, suggest_recipes


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
            except FileNotFoundError as error:
                Parser(f"acmix-zoo {argv[0]}").error(str(error))
    return words


def config_file(value: str) -> str:
    """Return the file that a `--config` refers to.

    Args:
        value: a file, a run folder (which refers to the config.yaml in it), or a recipe as in `find_recipe`. YAML text
            and addresses, which jsonargparse accepts too, are returned unchanged.

    Raises:
        FileNotFoundError: there is no such file, run folder or recipe. The error lists the closest recipes.
    """
    path = Path(value)
    if any(mark in value for mark in (":", "{", "\n")) or path.is_file():
        return value
    if (path / "config.yaml").is_file():
        return str(path / "config.yaml")
    if recipe := find_recipe(value):
        return str(recipe)
    if path.is_dir():
        raise FileNotFoundError(
            f"--config {value} is a folder without a config.yaml; expected the name of a recipe, a YAML file or a run "
            "folder"
        )
    raise FileNotFoundError(f"--config {value} does not exist; {suggest_recipes(value)}")
