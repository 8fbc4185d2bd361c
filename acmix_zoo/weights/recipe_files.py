"""Find recipes: those that ship with the package by name, the user's own by path, and those of run folders."""

from __future__ import annotations

import difflib
import glob
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from acmix_zoo.weights.locate import HUB_PREFIX, Kind, closest_paths, find_run, locate
from acmix_zoo.weights.not_found import NotFoundError, closest_names_phrase, not_found_error
from acmix_zoo.weights.shipped import packaged_folder

_SUFFIXES = (".yaml", ".yml")
_EXPECTED = "the name of a recipe such as finetune/folder, a YAML file or a run folder"


def recipes_root() -> Path | None:
    """Return the folder of shipped recipes, or None if the package was installed without it."""
    return packaged_folder("recipes")


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
    stem = _stem(name)
    found = [Path(name)] if Path(name).suffix in _SUFFIXES else []
    found += [root / f"{stem}.yaml"] if root else []
    by_last_part = sorted(root.glob(f"*/{glob.escape(stem)}.yaml")) if root else []
    found += [path for path in by_last_part if path.parent.name != "hardware"]
    return next((path for path in found if path.is_file()), None)


def locate_recipe(source: str | Path) -> Path:
    """Return the file of a recipe.

    Args:
        source: a YAML file, a run folder or a part of it such as its `weights/` (which stand for the config.yaml of the
            run), or a recipe as in `find_recipe`.

    Raises:
        NotFoundError: there is no such recipe. The error lists the closest names.
    """
    path, name = Path(source), str(source)
    if path.is_file() and path.suffix in _SUFFIXES:
        return path
    run = find_run(path)
    if run is not None and (run / "config.yaml").is_file():
        return run / "config.yaml"
    if recipe := find_recipe(name):
        return recipe
    try:
        kind = locate(source, prefers_paths=True).kind
    except NotFoundError:
        kind = None
    if kind is not None and (kind is not Kind.REPOSITORY or name.startswith(HUB_PREFIX)):
        advice = "To choose a network use --model.model; to start from weights use --model.pretrained"
        raise not_found_error(f"{name} is {kind.value}, which is not a recipe", _EXPECTED, advice=advice)
    if path.is_dir():
        raise not_found_error(f"{name} is a folder without a config.yaml", _EXPECTED)
    near = [*closest_recipes(name), *[run for run in closest_paths(path) if find_run(Path(run))]]
    advice = "" if near else f"The recipes are {', '.join(recipe_names()) or 'not installed'}"
    raise not_found_error(f"{name} does not exist", _EXPECTED, near, advice)


def is_in_recipe_group(name: str) -> bool:
    """Return whether a name has the form `GROUP/NAME` with a group of shipped recipes, such as `finetune`, and is not a
    path that exists."""
    groups = {known.partition("/")[0] for known in recipe_names()}
    return not Path(name).exists() and _stem(name).rpartition("/")[0] in groups


def closest_recipes(name: str) -> list[str]:
    """Return up to three shipped recipes, or YAML files in the folder that is named, with names similar to `name`."""
    names = recipe_names()
    stem = _stem(name)
    # The part after the last slash counts on its own, so that a wrong group still finds the recipe.
    by_last_part = {path.stem: str(path) for path in sorted(Path(name).parent.glob("*.yaml"))}
    by_last_part |= {known.rpartition("/")[2]: known for known in names}
    near = difflib.get_close_matches(stem, names, n=3)
    near += [by_last_part[part] for part in difflib.get_close_matches(stem.rpartition("/")[2], by_last_part, n=3)]
    return list(dict.fromkeys(near))[:3]


@contextmanager
def suggest_recipes_on_error(name: str) -> Iterator[None]:
    """Within this context, an error about weights that do not exist also lists the recipes with similar names.

    Use it where a name may refer to weights or to a recipe.
    """
    try:
        yield
    except (FileNotFoundError, ConnectionError, PermissionError) as error:
        near = closest_recipes(name)
        if not near:
            raise
        raise type(error)(f"{error}. If you mean a recipe, the {closest_names_phrase(near)}") from error


def _stem(name: str) -> str:
    """Return the name under which a recipe would ship: `finetune/folder` for `recipes/finetune/folder.yaml`."""
    return Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")
