"""Small networks, and weight folders to read, change and damage."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from acmix_zoo.weights import read_config, write_folder
from acmix_zoo.weights.card import CardPicture

ROOT = Path(__file__).resolve().parents[2]
SHIPPED = ROOT / "checkpoints" / "acmix_resnet_pico.fashion_mnist"
PRETRAINED_CFG = {"tag": "shapes", "input_size": (3, 32, 32), "mean": (0.5, 0.5, 0.5), "std": (0.25, 0.25, 0.25)}
RECORD = {
    "metrics": [{"dataset": "fashion_mnist", "split": "test", "name": "top1", "value": 0.93125}],
    "recipe": "recipes/shapes.yaml",
    "command": "acmix-zoo fit --config recipes/shapes.yaml | tee log",
    "dataset": {
        "name": "fashion_mnist",
        "fingerprint": "ca3ab2a37f845e1b",
        "splits": {"train": 54000, "test": 10000},
    },
    "seed": 3,
    "license": "mit",
    "origin": "trained here",
}


def pico(name: str = "acmix_resnet_pico", **kwargs: Any) -> nn.Module:
    """Return a small network in which every parameter and statistic differs from its initial value."""
    model = timm.create_model(name, **kwargs)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point():
                value.add_(0.02 * torch.rand_like(value))
    return model


def write_weights(
    folder: Path, model: nn.Module | None = None, architecture: str = "acmix_resnet_pico", **kwargs: Any
) -> Path:
    """Write a weight folder, by default of a new random network."""
    options = {"pretrained_cfg": PRETRAINED_CFG, "record": RECORD, "example": torch.randn(2, 3, 32, 32), **kwargs}
    return write_folder(folder, pico() if model is None else model, architecture=architecture, **options)


def write_segmenter(folder: Path, decoder: str = "unet") -> Path:
    """Write a weight folder of a segmenter with a random network, whose card has a picture. Skip the test if its
    package is missing."""
    pytest.importorskip("segmentation_models_pytorch")
    from acmix_zoo.models.segmenter import Segmenter

    metrics = [{"dataset": "shapes", "split": "test", "name": "miou", "value": 0.5}]
    return write_weights(
        folder,
        Segmenter("acmix_resnet_pico", 4, decoder=decoder),  # type: ignore[arg-type]
        record={**RECORD, "metrics": metrics, "dataset": {"name": "shapes"}},
        pictures=[CardPicture("curves.png", "Loss of *every* epoch", b"\x89PNG")],
    )


def file_contents(folder: Path) -> dict[str, bytes]:
    """Return the content of every file in a folder, by its path in it."""
    return {str(p.relative_to(folder)): p.read_bytes() for p in sorted(folder.rglob("*")) if p.is_file()}


def edit_config(folder: Path, **entries: Any) -> None:
    """Set entries of config.json. A mapping is merged into the existing one."""
    config = read_config(folder)
    for key, value in entries.items():
        config[key] = {**config.get(key, {}), **value} if isinstance(value, dict) else value
    (folder / "config.json").write_text(json.dumps(config))


def damage_last_byte(path: Path) -> None:
    """Flip one bit in the last byte of a file."""
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)


def save_checkpoint(path: Path, model: nn.Module, **hyper_parameters: Any) -> Path:
    """Write a checkpoint as `acmix-zoo fit` does for a network of four classes, with these hyper-parameters."""
    cfg = {"mean": [0.5] * 3, "std": [0.25] * 3, "input_size": [3, 32, 32], "label_names": ["a", "b", "c", "d"]}
    path.parent.mkdir(parents=True, exist_ok=True)
    content = {
        "pytorch-lightning_version": "2.5.0",
        "state_dict": {f"model.{key}": value for key, value in model.state_dict().items()},
        "hyper_parameters": {"model": "acmix_resnet_pico", "num_classes": 4, **hyper_parameters},
        "ImageDataModule": {"card": {"cfg": cfg}},
    }
    torch.save(content, path)
    return path
