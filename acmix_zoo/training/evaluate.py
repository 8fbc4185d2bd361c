"""Evaluate a weight folder, compare the scores with its record, and predict with it."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L

from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.data.sources.recorded import use_recorded_source
from acmix_zoo.models.task_kinds import CLASSIFICATION, config_task
from acmix_zoo.tasks.task_classes import task_classes
from acmix_zoo.training.logs import quieten_lightning
from acmix_zoo.weights import read_config
from acmix_zoo.weights.description import describe_config

# A different machine or number of threads rounds differently, which may change the class of one or two images in a
# thousand.
_TOLERANCE = 0.001


class Comparison(NamedTuple):
    """A recorded score and the measured one, both between 0 and 1.

    Attributes:
        metric: split and name, such as "test top1".
        recorded: the score in the record.
        measured: the score measured now.
    """

    metric: str
    recorded: float
    measured: float

    @property
    def is_same(self) -> bool:
        """Whether the two agree within the tolerance for rounding."""
        return abs(self.recorded - self.measured) <= _TOLERANCE


def evaluate(folder: Path, source: str, split: str) -> dict[str, float]:
    """Return the metrics of a weight folder on one split of a data source: {"loss": …, "top1": …} of a classifier.

    Args:
        folder: a weight folder.
        source: a data source, as for the data module of the task.
        split: "val" or "test".

    Raises:
        ValueError: the data has different classes, no such split, or another number of images in it than recorded.
            Other errors are those of the data module.
    """
    if split not in ("val", "test"):
        raise ValueError(f"unknown split {split!r}. Expected 'val' or 'test'")
    config = _full_config(folder)
    kind = config_task(config)
    data = task_classes(kind.name).data.for_weights(source, config)
    names = list(data.class_names)
    labels = config["pretrained_cfg"]["label_names"]
    if labels not in (None, names) or len(names) != config["num_classes"]:
        expected = labels[:5] if labels else f"{config['num_classes']} classes"
        raise ValueError(
            f"the classes of {source} are {names[:5]}. Expected those of {folder}, {expected}. Use the data set that "
            "the weights were trained on"
        )
    recorded = ((config["acmix_zoo"].get("dataset") or {}).get("splits") or {}).get(split)
    size = data.loaders.sizes().get(split)
    if size and recorded and size != recorded:
        raise ValueError(
            f"{source} has {size:,} {split} images. Expected {recorded:,}, on which the recorded scores were measured. "
            "Use the data set that the weights were trained on"
        )
    trainer, task = _trainer_and_task(folder, config)
    results: Any = (trainer.validate if split == "val" else trainer.test)(task, data, verbose=False)
    scores = {name.removeprefix(f"{split}/"): value for name, value in (results[0] if results else {}).items()}
    if kind.main_metric not in scores:
        raise ValueError(
            f"{source} has no {split} split. Expected the split that the record names. Use the data set that the "
            "weights were trained on"
        )
    if kind is CLASSIFICATION:
        return {"top5": 1.0, **scores}  # with five classes or fewer, top-5 is always 1 and not measured
    return scores


class Predictions(NamedTuple):
    """What `predict` returns, with everything that is needed to write it.

    Attributes:
        trainer: the trainer that predicted.
        data: the data module, with the paths of the images and the names of the classes.
        batches: what the task's `predict_step` returned for each batch.
    """

    trainer: L.Trainer
    data: ResumableDataModule
    batches: list[Any]


def predict(folder: Path, images: Sequence[str]) -> Predictions:
    """Return the predictions of a weight folder for images. Its training data are not needed.

    Args:
        folder: a weight folder.
        images: image files, folders of images, or patterns.

    Raises:
        FileNotFoundError, ValueError: there are no such images, none is readable, or the network is not for RGB images.
    """
    config = _full_config(folder)
    if (channels := config["pretrained_cfg"]["input_size"][0]) != 3:
        advice = ". To classify grey images, run `acmix-zoo classify IMAGES --model MODEL`" if channels == 1 else ""
        raise ValueError(
            f"{folder} holds a network for images with {channels} channel{'s' * (channels > 1)}. Expected one for "
            f"RGB{advice}"
        )
    dataset = config["acmix_zoo"].get("dataset") or {}
    names = config["pretrained_cfg"]["label_names"] or [str(number) for number in range(config["num_classes"])]
    card = {"dataset": dict.fromkeys(("name", "license", "fingerprint")) | dataset, "cfg": {"label_names": names}}
    with use_recorded_source(card):
        data = task_classes(config_task(config).name).data.for_weights("", config)
    data.predict = images
    trainer, task = _trainer_and_task(folder, config, accelerator="auto")
    return Predictions(trainer, data, trainer.predict(task, data) or [])


def _full_config(folder: Path) -> dict[str, Any]:
    """Return the content of config.json, with all fields of timm's pretrained_cfg. A folder of timm has no record."""
    config = {"acmix_zoo": {}, **read_config(folder)}
    cfg = config["pretrained_cfg"] = asdict(describe_config(config, folder).pretrained_cfg)
    return {"num_classes": cfg["num_classes"], **config}


def _trainer_and_task(folder: Path, config: Mapping[str, Any], accelerator: str = "cpu") -> tuple[L.Trainer, Any]:
    """Return a trainer that prints nothing, and the task with the weights."""
    quieten_lightning()
    trainer = L.Trainer(
        accelerator=accelerator, devices=1, logger=False, enable_checkpointing=False, enable_progress_bar=False,
        enable_model_summary=False,
    )  # fmt: skip
    options = {**config.get("task_options", {}), **config["acmix_zoo"].get("evaluation", {})}
    task = task_classes(config_task(config).name).task
    return trainer, task(str(folder), num_classes=config["num_classes"], channels_last=False, **options)


def evaluate_again(folder: Path, source: str) -> Iterator[Comparison]:
    """Measure the recorded metrics of a weight folder again, on each split that its record names.

    Raises:
        ValueError: the record states no metric of the task. Other errors are those of `evaluate`.
    """
    config = read_config(folder)
    known = config_task(config).metrics
    metrics = [m for m in config["acmix_zoo"]["metrics"] if m["name"] in known]
    if not metrics:
        raise ValueError(
            f"the record of {folder} has no accuracy. Expected {' or '.join(known)} among its metrics. Verify it "
            "without --data"
        )
    for split in dict.fromkeys(m["split"] for m in reversed(metrics)):  # the test split first, because it matters most
        scores = evaluate(folder, source, split)
        for m in metrics:
            if m["split"] == split:
                yield Comparison(f"{split} {m['name']}", m["value"], scores[m["name"]])
