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


def suggest_recipes(name: str | Path) -> str:
    """Return the end of an error about a recipe that does not exist: a question with the closest names, or all names.

    Suggestions are shipped recipes, and YAML files in the folder that was named.
    """
    names = recipe_names()
    stem = Path(name).as_posix().removeprefix("recipes/").removesuffix(".yaml")
    # The part after the last slash counts on its own, so that a wrong group still finds the recipe.
    by_last_part = {path.stem: str(path) for path in sorted(Path(name).parent.glob("*.yaml"))}
    by_last_part |= {known.rpartition("/")[2]: known for known in names}
    near = difflib.get_close_matches(stem, names, n=3)
    near += [by_last_part[part] for part in difflib.get_close_matches(stem.rpartition("/")[2], by_last_part, n=3)]
    if near:
        return f"did you mean {' or '.join(list(dict.fromkeys(near))[:3])}?"
    return f"the recipes are {', '.join(names) or 'missing from this installation'}"


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
