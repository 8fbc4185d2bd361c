"""Find out how weights were trained: the arguments of `fit` behind a weight folder, a run folder or a recipe."""

from __future__ import annotations

import os
import re
import shlex
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from acmix_zoo.models.published import published
from acmix_zoo.weights import read_config
from acmix_zoo.weights.description import has_config
from acmix_zoo.weights.fetch import weight_folder
from acmix_zoo.weights.locate import find_run
from acmix_zoo.weights.recipe_files import (
    find_recipe,
    is_in_recipe_group,
    locate_recipe,
    recipes_root,
    suggest_recipes_on_error,
)
from acmix_zoo.weights.shipped import checkpoints_root

Record = Mapping[str, Any]

# Options of a recorded command that belong to that run: where it was written and what it resumed from.
RUN_OPTIONS = ("--run.folder", "--run.push_to", "--ckpt_path")


class Target(NamedTuple):
    """A training run to reproduce."""

    name: str
    arguments: list[str]  # of `fit`
    record: Record  # to compare the metrics with; {} if there is none


def find_target(name: str) -> Target:
    """Find the training behind weights or a recipe.

    Args:
        name: weights (as `locate` accepts them), a run folder or a part of it, or a recipe.

    Raises:
        FileNotFoundError: there are no weights and no recipe of that name, or the recipe that the record names is not
            available.
        ValueError: the record does not state how the weights were trained, or names code to run.
    """
    run = find_run(Path(name))
    if run is not None and has_config(run / "weights"):
        return _target_of_weights(run / "weights", name)
    if run is not None and (run / "config.yaml").is_file():  # it was interrupted
        return _recipe_target(run / "config.yaml", run.name)
    recipe = find_recipe(name)
    if is_in_recipe_group(name) or Path(name).suffix in (".yaml", ".yml"):
        return _recipe_target(locate_recipe(name))
    if recipe and "/" in name:
        return _recipe_target(recipe)
    try:
        with suggest_recipes_on_error(name):
            folder = weight_folder(name)
    except FileNotFoundError:
        if recipe:
            return _recipe_target(recipe)
        raise
    return _target_of_weights(folder, name, recipe)


def _target_of_weights(folder: Path, name: str, recipe: Path | None = None) -> Target:
    """Return the training that the record of a weight folder describes, or that of `recipe` if it describes none."""
    record = read_config(folder).get("acmix_zoo", {})
    if record.get("command") or record.get("recipe"):
        run = find_run(folder)  # if the folder is still inside its run folder
        own = run / "config.yaml" if run and (run / "config.yaml").is_file() else None
        root, arguments = checkpoints_root(), recorded_arguments(record, own)
        if own is None and not (root and folder.resolve().parent == root.resolve()):
            _check_foreign(arguments, name)
        return Target(record["name"], arguments, record)
    if recipe:
        return _recipe_target(recipe)
    raise ValueError(
        f"the record of {name} has neither a command nor a recipe (origin: {record.get('origin', 'unknown')}), so it "
        "does not say how to train the weights. Pass the name of a recipe instead"
    )


def _check_foreign(arguments: Sequence[str], name: str) -> None:
    """Check that the arguments of `fit` from the record of weights, which may come from anyone, choose no code to run.

    Raises:
        ValueError: they do, as for a callback. The message names the option.
    """
    for option, *values in split_options(arguments):
        if not (_is_recipe_to_trust(values[0]) if option == "--config" else _is_plain_option(option, " ".join(values))):
            raise ValueError(
                f"the command in the record of {name} has {' '.join([option, *values])[:200]}, which may run any code. "
                "Expected plain options only, because weights may come from anyone. If you trust the command, copy it "
                "from config.json and run it yourself"
            )


def _is_recipe_to_trust(path: str) -> bool:
    """Return whether a recipe is shipped, or at least not in a folder of weights, with which it may have come."""
    root, folders = recipes_root(), Path(path).resolve().parents
    is_shipped = root is not None and root.resolve() in folders
    return is_shipped or not any((folder / "config.json").exists() for folder in folders)


def _is_plain_option(option: str, text: str) -> bool:
    """Return whether an option cannot name a class. The trainer takes names of classes for many of its options."""
    import yaml  # type: ignore[import-untyped]

    group, _, field = option.removeprefix("--").partition(".")
    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        return False
    if group == "trainer":
        values = value if isinstance(value, list) else [value]
        is_plain = all(isinstance(v, int | float | None) or re.fullmatch(r"[\w:+-]*", str(v)) for v in values)
        return is_plain and "." not in field
    is_known = group in ("data", "model", "run", "speed") if field else group in ("task", "seed_everything")
    return is_known and "class_path" not in field and not _has_class(value)


def _has_class(value: Any) -> bool:
    if isinstance(value, dict):
        return "class_path" in value or any(map(_has_class, value.values()))
    return isinstance(value, list) and any(map(_has_class, value))


def _recipe_target(recipe: Path, name: str = "") -> Target:
    """Return the training of a recipe, with the record of the shipped weights that it produced, or the published
    accuracy.

    Args:
        recipe: the file, which may be the config.yaml of a run.
        name: what to call it; by default, as the file.
    """
    arguments = ["--config", str(recipe)]
    if _setting(read_settings(recipe), "--run.push_to"):
        arguments += ["--run.push_to", "null"]  # what was published must not be replaced by its reproduction
    place = f"recipes/{recipe.parent.name}/{recipe.name}"
    root = checkpoints_root()
    for config in sorted(root.glob("*/config.json")) if root else []:
        record = read_config(config.parent)["acmix_zoo"]
        if record.get("recipe") == place:
            return Target(record["name"], recorded_arguments(record), record)
    top1 = published(recipe.stem).top1  # empty for recipes that are not named after a network
    if recipe.parent.name != "imagenet1k" or not top1:
        return Target(name or recipe.stem, arguments, {})
    score = {"split": "val", "name": "top1", "value": float(top1) / 100}
    record = {"metrics": [score], "rounding": 5e-4, "dataset": {"splits": {"val": 50_000}}}
    return Target(recipe.stem, arguments, record)


def recorded_arguments(record: Record, config: Path | None = None) -> list[str]:
    """Return the arguments of `fit` from a record's command, with the seed and the present paths of the recipes.

    For files outside the run's working directory, a record stores only the file name, which may be ambiguous. If
    `config` is given, full paths are taken from it, and it replaces any recipe that is not shipped.

    Raises:
        FileNotFoundError: a recipe of the command does not exist.
    """
    words = shlex.split(record.get("command") or "")
    own = words[2:] if words[:2] == ["acmix-zoo", "fit"] else ["--config", str(record["recipe"])]
    settings = read_settings(config) if config else {}
    arguments: list[str] = []
    for name, *values in split_options(own):
        if name in RUN_OPTIONS:
            continue
        if name == "--config":
            recipe = _recorded_recipe(values[0], config)
            if recipe is None:
                raise FileNotFoundError(
                    f"the record of {record['name']} names {values[0]}, which does not exist and is not a shipped "
                    "recipe. Run this command in the folder that contains the file, or pass the run folder"
                )
            values = [str(recipe)]
            if recipe == config and _setting(settings, "--run.push_to"):
                values += ["--run.push_to", "null"]  # belongs to the recorded run, like RUN_OPTIONS
        elif values and _is_path(place := _setting(settings, name)) and Path(place).name == Path(values[0]).name:
            values = [place]
        arguments += [name, *values]
    return arguments + (["--seed_everything", str(record["seed"])] if record.get("seed") is not None else [])


def _recorded_recipe(name: str, config: Path | None) -> Path | None:
    """Return the file of a recipe that a recorded command names, or None.

    Args:
        name: the recipe as recorded.
        config: the run's own config.yaml, if it exists.
    """
    root = recipes_root()
    if root and name.startswith("recipes/") and (root.parent / name).is_file():
        return find_recipe(name)
    if config:
        return config
    return Path(name) if Path(name).is_file() else None


def _is_path(value: str) -> bool:
    return os.path.isabs(value.removeprefix("file://"))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the contents of a recipe as a dict."""
    import yaml

    loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _setting(settings: Mapping[str, Any], option: str) -> str:
    """Return a recipe's value for `--some.option` as text, or "" if it has none."""
    found: Any = settings
    for key in option.removeprefix("--").split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def split_options(words: Sequence[str]) -> list[list[str]]:
    """Group the words of a command by option: ["--a=1", "--b", "2"] becomes [["--a", "1"], ["--b", "2"]]."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        elif word == "-c":
            groups.append(["--config"])
        elif groups:
            groups[-1].append(word)
    return groups
