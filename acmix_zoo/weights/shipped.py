"""Find the weights that ship with the package, and register them with timm."""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from acmix_zoo.models.registry import register_weights


@cache
def checkpoints_root() -> Path | None:
    """Return the folder of shipped weights, or None if the package was installed without it."""
    return packaged_folder("checkpoints")


def shipped_folder(name: str) -> Path | None:
    """Return the weight folder of `architecture.tag` if it ships with the package, or None."""
    root = checkpoints_root()
    folder = root / name if root else None
    return folder if folder and (folder / "config.json").is_file() else None


def packaged_folder(name: str) -> Path | None:
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
    license = content["acmix_zoo"]["license"]  # of these weights, which can differ from that of the code
    return {**fields, "license": license, "label_names": labels, "file": str(config.parent / "model.safetensors")}
