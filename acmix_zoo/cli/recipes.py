"""Find recipes by name, so that `--config finetune/folder` works from any directory and after `pip install`."""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.weights.shipped import recipes_root


def recipe_names() -> list[str]:
    """Return the names of all shipped recipes and hardware profiles, such as `finetune/folder`, sorted."""
    root = recipes_root()
    return sorted(path.relative_to(root).with_suffix("").as_posix() for path in root.glob("*/*.yaml")) if root else []


def find_recipe(name: str) -> Path | None:
    """Return the file of a recipe, or None if there is no such recipe.

    Args:
        name: the path of a file, the name of a shipped recipe (`finetune/folder`), its path in a clone
            (`recipes/finetune/folder.yaml`), or the last part of its name (`folder`). Hardware profiles have no short
            names, because they cannot be trained on their own.
    """
    root = recipes_root()
    stem = name.removeprefix("recipes/").removesuffix(".yaml")
    found = [Path(name)] if name.endswith(".yaml") else []
    found += [root / f"{stem}.yaml"] if root else []
    found += sorted(path for path in root.glob(f"*/{stem}.yaml") if path.parent.name != "hardware") if root else []
    return next((path for path in found if path.is_file()), None)


def with_config_files(argv: Sequence[str]) -> list[str]:
    """Return the arguments with every `--config` resolved to a file: see `config_file`."""
    words = list(argv)
    for i, word in enumerate(argv):
        option, equals, value = word.partition("=") if word.startswith("-") else (argv[i - 1], "", word)
        if i and option in ("-c", "--config") and value:
            words[i] = (option + equals if equals else "") + config_file(value)
    return words


def config_file(value: str) -> str:
    """Return the file that a `--config` refers to.

    Args:
        value: a file, a run folder (which refers to the config.yaml in it), or a recipe as in `find_recipe`. YAML text
            and addresses, which jsonargparse accepts too, are returned unchanged.

    Raises:
        FileNotFoundError: there is no such file, run folder or recipe; the error lists the closest recipes.
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
            f"--config {value} is a folder without a config.yaml. Expected a YAML file, a run folder of "
            "`acmix-zoo fit` or the name of a recipe"
        )
    raise FileNotFoundError(
        f"--config {value} is not an existing file, a run folder or a recipe that ships with acmix-zoo. "
        f"{_closest(value)}"
    )


def _closest(value: str) -> str:
    """Return a sentence that names the recipes most similar to `value`, or all of them if none is."""
    names = recipe_names()
    stem = value.removeprefix("recipes/").removesuffix(".yaml")
    last_parts = {name.rpartition("/")[2]: name for name in names}
    near = difflib.get_close_matches(stem, names, n=3)
    near += [last_parts[part] for part in difflib.get_close_matches(stem.rpartition("/")[2], last_parts, n=3)]
    if near:
        return f"Did you mean {', '.join(list(dict.fromkeys(near))[:3])}?"
    return f"The recipes are {', '.join(names) or 'missing from this installation'}"
