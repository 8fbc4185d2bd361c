"""Measure again what a weight folder's record says."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from acmix_zoo.weights import read_config
from acmix_zoo.weights.build_folder import build_folder

# Another machine or thread count rounds otherwise, and an image or two in a thousand may fall on the other side.
_TOLERANCE = 0.001


def evaluate(folder: Path, source: str, split: str) -> dict[str, float]:
    """Accuracy (0..1) of a weight folder on one split of a data source, every image counted once.

    Raises:
        ValueError: other classes than the weights have, or no such split. Else as `ImageDataModule`.
    """
    from acmix_zoo.data import ImageDataModule

    model = build_folder(folder).eval()
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]
    data = ImageDataModule(
        source, image_size=cfg["input_size"][1], batch_size=128, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"],
    )  # fmt: skip
    names = list(data.class_names)
    if cfg.get("label_names") not in (None, names):
        raise ValueError(f"{source} has other classes than {folder}: {names[:5]} there, {cfg['label_names'][:5]} here")
    if split not in ("val", "test"):
        raise ValueError(f"split={split!r} was given; expected val or test")
    data.setup({"val": "validate", "test": "test"}[split])
    loader: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    right, total = {"top1": 0, "top5": 0}, 0
    with torch.inference_mode():
        for images, classes in loader:
            counts = classes >= 0  # others are only computed
            best = model(images)[counts].topk(min(5, len(names)), 1).indices == classes[counts].unsqueeze(1)  # (B, 5)
            right["top1"] += int(best[:, :1].sum())
            right["top5"] += int(best.sum())
            total += len(best)
    if not total:
        raise ValueError(f"{source} has no {split} split to measure on")
    return {name: n / total for name, n in right.items()}


def compare(folder: Path, source: str) -> list[tuple[str, float, float, bool]]:
    """For each recorded top-1 and top-5 of the split that the record states last: (what, recorded, measured, the same).

    Raises:
        ValueError: nothing is recorded. Else as `evaluate`.
    """
    metrics = [m for m in read_config(folder)["acmix_zoo"]["metrics"] if m["name"] in ("top1", "top5")]
    if not metrics:
        raise ValueError(f"{folder} records no accuracy to compare with")
    split = metrics[-1]["split"]  # test, where there is one
    found = evaluate(folder, source, split)
    return [
        (f"{split} {m['name']}", m["value"], found[m["name"]], abs(m["value"] - found[m["name"]]) <= _TOLERANCE)
        for m in metrics
        if m["split"] == split
    ]
