"""Find the weights that ship with the package, and register those of classifiers with timm.

Weights of detectors and segmenters cannot be registered, because timm does not build such networks. `locate` finds them
by the name of their folder, such as `fcos_acmix_resnet_nano.bccd`.
"""

from __future__ import annotations

import json
from functools import cache
from pathlib import Path
from typing import Any

from acmix_zoo.models.registry import register_weights
from acmix_zoo.models.task_kinds import CLASSIFICATION, config_task


@cache
def checkpoints_root() -> Path | None:
    """Return the folder of shipped weights, or None if the package was installed without it."""
    return packaged_folder("checkpoints")


def shipped_folder(name: str) -> Path | None:
    """Return the weight folder of this name, such as `architecture.tag`, if it ships with the package, or None."""
    root = checkpoints_root()
    folder = root / name if root else None
    return folder if folder and (folder / "config.json").is_file() else None


def packaged_folder(name: str) -> Path | None:
    """Return a folder that a wheel puts inside the package and a clone holds next to it."""
    package = Path(__file__).resolve().parent.parent
    return next((folder for folder in (package / name, package.parent / name) if folder.is_dir()), None)


def shipped_classifiers() -> dict[str, Path]:
    """Return the shipped weight folders of classifiers by name, `architecture.tag`, sorted."""
    return {folder.name: folder for folder, config in _configs().items() if config_task(config) is CLASSIFICATION}


def shipped_task_networks() -> dict[str, Path]:
    """Return the shipped weight folders of detectors and segmenters by name, sorted."""
    return {folder.name: folder for folder, config in _configs().items() if config_task(config) is not CLASSIFICATION}


def register_shipped_weights() -> None:
    """Make the weights of all classifiers available to `timm.create_model`."""
    configs = _configs()
    register_weights({name: _pretrained_cfg(configs[folder], folder) for name, folder in shipped_classifiers().items()})


@cache
def _configs() -> dict[Path, dict[str, Any]]:
    """Return every shipped weight folder with the content of its config.json, sorted by name."""
    root = checkpoints_root()
    configs = sorted(root.glob("*.*/config.json")) if root else []
    return {config.parent: json.loads(config.read_text(encoding="utf-8")) for config in configs}


def _pretrained_cfg(config: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the fields of timm's pretrained_cfg that the config.json of a weight folder states."""
    fields = {
        key: tuple(value) if isinstance(value, list) else value for key, value in config["pretrained_cfg"].items()
    }
    labels = config.get("label_names")  # timm expects them at the top level of config.json
    license = config["acmix_zoo"]["license"]  # of these weights, which can differ from that of the code
    return {**fields, "license": license, "label_names": labels, "file": str(folder / "model.safetensors")}
