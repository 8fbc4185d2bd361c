"""Measure the accuracy of a weight folder, and compare it with its record."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
from timm.models import PretrainedCfg

from acmix_zoo.data import ImageDataModule
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.logs import quieten_lightning
from acmix_zoo.weights import read_config

# A different machine or number of threads rounds differently, which may change the class of one or two images in a
# thousand.
_TOLERANCE = 0.001


class Comparison(NamedTuple):
    """A recorded accuracy and the measured one, both between 0 and 1.

    Attributes:
        metric: split and name, such as "test top1".
        recorded: the accuracy in the record.
        measured: the accuracy measured now.
    """

    metric: str
    recorded: float
    measured: float

    @property
    def is_same(self) -> bool:
        """Whether the two agree within the tolerance for rounding."""
        return abs(self.recorded - self.measured) <= _TOLERANCE


def evaluate(folder: Path, source: str, split: str) -> dict[str, float]:
    """Return {"loss": …, "top1": …, "top5": …} of a weight folder on one split of a data source.

    Args:
        folder: a weight folder.
        source: a data source, as for `ImageDataModule`.
        split: "val" or "test".

    Raises:
        ValueError: the data has different classes, or no such split. Other errors are those of `ImageDataModule`.
    """
    if split not in ("val", "test"):
        raise ValueError(f"unknown split {split!r}. Expected 'val' or 'test'")
    config = read_config(folder)
    cfg = {**asdict(PretrainedCfg()), **config["pretrained_cfg"]}
    recorded_data = config["acmix_zoo"].get("dataset") or {}
    data = ImageDataModule(
        source, image_size=cfg["input_size"][1], batch_size=128, mean=tuple(cfg["mean"]), std=tuple(cfg["std"]),
        interpolation=cfg["interpolation"], crop_pct=cfg["crop_pct"],
        validation_as_test=recorded_data.get("validation_as_test", False),
    )  # fmt: skip
    names = list(data.class_names)
    labels = cfg["label_names"]
    if labels not in (None, names):
        raise ValueError(
            f"the classes of {source} are {names[:5]}. Expected those of {folder}, {labels[:5]}. Use the data set that "
            "the weights were trained on"
        )
    quieten_lightning()
    trainer = L.Trainer(
        accelerator="cpu", devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    task = ClassificationTask(str(folder), num_classes=data.num_classes, channels_last=False)
    results: Any = (trainer.validate if split == "val" else trainer.test)(task, data, verbose=False)
    scores = {name.removeprefix(f"{split}/"): value for name, value in (results[0] if results else {}).items()}
    if "top1" not in scores:
        raise ValueError(
            f"{source} has no {split} split. Expected the split that the record names. Use the data set that the "
            "weights were trained on"
        )
    return {"top5": 1.0, **scores}  # with five classes or fewer, top-5 is always 1 and not measured


def evaluate_again(folder: Path, source: str) -> list[Comparison]:
    """Measure the recorded accuracies of a weight folder again: those on the test split or, without one, on val.

    Raises:
        ValueError: the record states no accuracy. Other errors are those of `evaluate`.
    """
    metrics = [m for m in read_config(folder)["acmix_zoo"]["metrics"] if m["name"] in ("top1", "top5")]
    if not metrics:
        raise ValueError(
            f"the record of {folder} has no accuracy. Expected top1 or top5 among its metrics. Verify it without --data"
        )
    split = metrics[-1]["split"]
    scores = evaluate(folder, source, split)
    return [Comparison(f"{split} {m['name']}", m["value"], scores[m["name"]]) for m in metrics if m["split"] == split]
