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
_FIT = ["acmix-zoo", "fit"]
# Options of the trainer that take words, but no class. The others may be numbers and the like.
_PLAIN_TRAINER_OPTIONS = {"deterministic", "devices", "gradient_clip_algorithm", "max_time", "precision"}


class Target(NamedTuple):
    """A training run to reproduce."""

    name: str
    arguments: list[str]  # of `fit`
    record: Record  # to compare the metrics with; {} if there is none


def find_target(name: str, is_trusted: bool = False) -> Target:
    """Find the training behind weights or a recipe.

    Args:
        name: weights (as `locate` accepts them), a run folder or a part of it, or a recipe.
        is_trusted: accept any recorded command, even if the weights came from elsewhere.

    Raises:
        FileNotFoundError: there are no weights and no recipe of that name, or the recipe that the record names is not
            available.
        ValueError: the record is damaged or does not state how the weights were trained, or its command is not trusted.
    """
    run = find_run(Path(name))
    if run is not None and has_config(run / "weights"):
        return _target_of_weights(run / "weights", name, is_trusted)
    if run is not None and (run / "config.yaml").is_file() and not has_config(run):  # it was interrupted
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
    return _target_of_weights(folder, name, is_trusted, recipe)


def _target_of_weights(folder: Path, name: str, is_trusted: bool, recipe: Path | None = None) -> Target:
    """Return the training that the record of a weight folder describes, or that of `recipe` if it describes none."""
    record = read_config(folder).get("acmix_zoo", {})
    if record.get("command") or record.get("recipe"):
        _check_texts(record, name)
        run = find_run(folder)  # if the folder is still inside its run folder
        is_inside = run and run.resolve() != folder.resolve() and (run / "config.yaml").is_file()
        own = run / "config.yaml" if run and is_inside else None
        root, arguments = checkpoints_root(), recorded_arguments(record, own)
        if own is None and not is_trusted and not (root and folder.resolve().parent == root.resolve()):
            _check_foreign(arguments, name)
        return Target(record["name"], arguments, record)
    if recipe:
        return _recipe_target(recipe)
    raise ValueError(
        f"the record of {name} has neither a command nor a recipe (origin: {record.get('origin', 'unknown')}), so it "
        "does not say how to train the weights. Pass the name of a recipe instead"
    )


def _check_texts(record: Record, name: str) -> None:
    """Check that a record has a name, and a command or recipe that can be parsed.

    Raises:
        ValueError: the record is damaged.
    """
    reason = ""
    texts = [record.get("name"), *(record[key] for key in ("command", "recipe") if record.get(key))]
    if not all(isinstance(text, str) for text in texts):
        reason = "its name, command and recipe must be strings"
    else:
        try:
            if shlex.split(record.get("command") or "")[:2] != _FIT and not record.get("recipe"):
                reason = f"its command does not start with `{' '.join(_FIT)}`, and it names no recipe"
        except ValueError as error:
            reason = f"its command cannot be parsed: {error}"
    if reason:
        raise ValueError(
            f"the record of {name} is damaged: {reason}. Download the weights again, or pass the name of a recipe"
        )


def _check_foreign(arguments: Sequence[str], name: str) -> None:
    """Check that the arguments of `fit` from the record of weights, which may come from anyone, can run no other code.

    Raises:
        ValueError: they may. The message names the option.
    """
    for option, *values in split_options(arguments):
        # `-cFILE` and the like would be another option; -1 is a number
        has_one_value = len(values) == 1 and not re.match(r"-(?![\d.])", values[0])
        if not (has_one_value and (_is_shipped(values[0]) if option == "--config" else _is_plain(option, values[0]))):
            raise ValueError(
                f"the command in the record of {name} has {' '.join([option, *values])[:200]}. Expected a shipped "
                "recipe and plain options, because weights may come from anyone, and other recipes and options may run "
                "any code. If you trust the command in its config.json, add --trust-command"
            )


def _is_shipped(recipe: str) -> bool:
    root = recipes_root()
    return root is not None and root.resolve() in Path(recipe).resolve().parents


def _is_plain(option: str, text: str) -> bool:
    """Return whether an option can only set numbers, words and file names, or choose a class of Lightning's by name."""
    group, _, field = option.removeprefix("--").partition(".")
    if not field:
        return group in ("task", "seed_everything")
    if group == "trainer":
        kind = r"\w+" if field in ("accelerator", "strategy") else r"true|false|null|\[\]|-?[\d.]+"
        is_short = re.fullmatch(kind, text, re.IGNORECASE) and not Path(text).exists()  # a file would be parsed
        return field in _PLAIN_TRAINER_OPTIONS or ("." not in field and bool(is_short))
    # Fields ending in _kwargs hold any values, which the parser turns into objects if they name a class.
    return group in ("data", "model", "run", "speed") and "." not in field and not field.endswith("_kwargs")


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
    own = words[2:] if words[:2] == _FIT else ["--config", record["recipe"]]
    settings = read_settings(config) if config else {}
    arguments: list[str] = []
    for name, *values in split_options(own):
        if name in RUN_OPTIONS:
            continue
        if name == "--config":
            recipe = _recorded_recipe(values[0], config) if values else None
            if recipe is None:
                raise FileNotFoundError(
                    f"the record of {record['name']} names {' '.join(values)}, which does not exist and is not a "
                    "shipped recipe. Run this command in the folder that contains the file, or pass the run folder"
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
        return root.parent / name
    if config:
        return config
    return Path(name) if Path(name).is_file() else None


def _is_path(value: str) -> bool:
    return os.path.isabs(value.removeprefix("file://"))


def read_settings(path: str | Path) -> dict[str, Any]:
    """Return the contents of a recipe as a dict."""
    import yaml  # type: ignore[import-untyped]

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
