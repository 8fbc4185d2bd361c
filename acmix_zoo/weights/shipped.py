"""Find the weights and recipes that ship with the package, and register the weights with timm."""

from __future__ import annotations

import difflib
import json
from functools import cache
from pathlib import Path
from typing import Any

from acmix_zoo.models.registry import register_weights


@cache
def checkpoints_root() -> Path | None:
    """Return the folder of shipped weights, or None if the package was installed without it."""
    return _packaged("checkpoints")


def shipped_folder(name: str) -> Path | None:
    """Return the weight folder of `architecture.tag` if it ships with the package, or None."""
    root = checkpoints_root()
    folder = root / name if root else None
    return folder if folder and (folder / "config.json").is_file() else None


def recipes_root() -> Path | None:
    """Return the folder of shipped recipes, or None if the package was installed without it."""
    return _packaged("recipes")


def nearest_recipe(path: str | Path) -> str | None:
    """Return the path of the recipe whose name is closest to that of a file that does not exist, or None.

    Candidates are the YAML files in the same folder and the shipped recipes.
    """
    root = recipes_root()
    found = [*Path(path).parent.glob("*.yaml"), *(sorted(root.rglob("*.yaml")) if root else [])]
    names = {recipe.stem: recipe for recipe in reversed(found)}
    near = difflib.get_close_matches(Path(path).name.removesuffix(".yaml"), names, n=1)
    if not near:
        return None
    recipe, here = names[near[0]].absolute(), Path.cwd()
    return str(recipe.relative_to(here) if recipe.is_relative_to(here) else recipe)


def _packaged(name: str) -> Path | None:
    """Return a folder that a wheel puts inside the package and a clone holds next to it."""
    package = Path(__file__).resolve().parent.parent
    return next((folder for folder in (package / name, package.parent / name) if folder.is_dir()), None)


def register_shipped_weights() -> None:
    """Make every weight folder `checkpoints/<architecture>.<tag>` available as `timm.create_model` weights."""
    root = checkpoints_root()
    configs = sorted(root.glob("*.*/config.json")) if root else []
    register_weights({config.parent.name: _pretrained_cfg(config) for config in configs})


def _pretrained_cfg(config: Path) -> dict[str, Any]:
    """Return the fields of timm's pretrained_cfg that the config.json of a weight folder states."""
    content = json.loads(config.read_text(encoding="utf-8"))
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in content["pretrained_cfg"].items()
    }
    labels = content.get("label_names")  # timm expects them at the top level of config.json
    return {**fields, "label_names": labels, "file": str(config.parent / "model.safetensors")}
