"""Collect predictions from all processes and write them in the form of the task."""

from __future__ import annotations

import csv
import os
from collections import Counter
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L

from acmix_zoo.cli.coco_predictions import coco_content, coco_image, write_coco
from acmix_zoo.data.masks.mask_classes import palette_image
from acmix_zoo.data.wording import count_noun
from acmix_zoo.models.task_kinds import DETECTION, SEGMENTATION, TaskKind
from acmix_zoo.tasks.gather import gather


def write_predictions(task: TaskKind, trainer: L.Trainer, batches: Sequence[Any], data: Any, folder: Path) -> None:
    """Write the predictions of all processes into a folder: predictions.csv for a classifier, masks for a segmenter, or
    predictions.json in COCO's format for a detector.

    Args:
        task: the task.
        trainer: the trainer that predicted.
        batches: what `predict_step` returned for each batch of this process.
        data: the data module.
        folder: the run folder.
    """
    if task is SEGMENTATION:
        masks = [mask for batch in batches for mask in batch if mask.position >= 0]
        write_masks(folder / "predictions", masks, data.predict_paths, data.class_names, trainer)
        return
    if task is DETECTION:
        own = [coco_image(each, data.category_ids) for batch in batches for each in batch if each.image >= 0]
        images = sorted(gather(own), key=lambda image: image["position"])
        if trainer.is_global_zero:
            content = coco_content(images, data.predict_paths, data.class_names, data.category_ids)
            _save(folder / "predictions.json", len(images), lambda path: write_coco(path, content))
        return
    predictions = gather_predictions(batches)
    if trainer.is_global_zero:
        write_table(folder / "predictions.csv", predictions, data.predict_paths, data.class_names)


def write_masks(
    folder: Path, masks: Sequence[Any], image_paths: Sequence[str], class_names: Sequence[str], trainer: L.Trainer
) -> None:
    """Write a palette PNG for each image. Its pixels hold the class numbers. An existing folder is renamed.

    The mask of a.jpg is a.png. If there is an a.png, too, their masks are a.jpg.png and a.png.png.

    Args:
        folder: the folder to write. Images from different folders keep their folders in it.
        masks: this process's `MaskPrediction`s. Every process writes its own.
        image_paths: the paths of all images.
        class_names: the names of the classes.
        trainer: the trainer that predicted.
    """
    former = None
    if trainer.is_global_zero:
        folder.parent.mkdir(parents=True, exist_ok=True)
        former = _rename_existing(folder)
        folder.mkdir()
    trainer.strategy.barrier("predictions")
    names = _mask_names(image_paths)
    for index, mask in masks:
        path = folder / names[index]
        path.parent.mkdir(parents=True, exist_ok=True)
        palette_image(mask.numpy(), len(class_names)).save(path)
    written = sum(gather([len(masks)]))
    if trainer.is_global_zero:
        note = f" (the previous ones are now in {former.name})" if former else ""
        print(f"Saved the masks of {count_noun(written, 'image')} to {folder}{note}", flush=True)


def _mask_names(image_paths: Sequence[str]) -> list[Path]:
    """Return the path of the mask of each image, relative to the folder of all masks."""
    paths = [Path(os.path.abspath(path)) for path in image_paths]  # without "..", which would lead out of the folder
    root = os.path.commonpath([path.parent for path in paths])
    images = [path.relative_to(root) for path in paths]
    short = [image.with_suffix(".png") for image in images]
    full = [image.with_name(f"{image.name}.png") for image in images]
    uses = Counter([*short, *full])  # an image may be called a.jpg.webp
    return [name if uses[name] == 1 else longer for name, longer in zip(short, full, strict=True)]


class Prediction(NamedTuple):
    """The prediction for one image.

    Attributes:
        image: position of the image in the list of images.
        probabilities: one per class.
    """

    image: int
    probabilities: list[float]


def gather_predictions(batches: Sequence[Any]) -> list[Prediction]:
    """Return the predictions of all processes, in the order of the images.

    Args:
        batches: this process's (probabilities, indices), as `ClassificationTask.predict_step` returns them. A negative
            index marks a padding image, added so that every process has the same number of batches.
    """
    own = [
        Prediction(index, row)
        for probabilities, indices in batches
        for index, row in zip(indices.tolist(), probabilities.tolist(), strict=True)
        if index >= 0
    ]
    return sorted(gather(own))


def write_table(
    path: Path, predictions: Sequence[Prediction], image_paths: Sequence[str], class_names: Sequence[str]
) -> None:
    """Write a CSV file with path, class, probability, and the probability of every class. An existing file is renamed.

    Args:
        path: the file to write.
        predictions: the predictions, in the order of the rows.
        image_paths: the paths of all images.
        class_names: the names of the classes.
    """

    def write(path: Path) -> None:
        with path.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            writer = csv.writer(file)
            writer.writerow(["path", "class", "probability", *class_names])
            for image, probabilities in predictions:
                highest = max(probabilities)
                name = class_names[probabilities.index(highest)]
                writer.writerow([image_paths[image], name, f"{highest:.4f}", *(f"{p:.4f}" for p in probabilities)])

    _save(path, len(predictions), write)


def _save(path: Path, images: int, write: Callable[[Path], None]) -> None:
    """Rename an existing file, write the new one, and print where it is."""
    path.parent.mkdir(parents=True, exist_ok=True)
    former = _rename_existing(path)
    write(path)
    note = f" (the previous ones are now in {former.name})" if former else ""
    print(f"Saved the predictions for {count_noun(images, 'image')} to {path}{note}", flush=True)


def _rename_existing(path: Path) -> Path | None:
    """Rename an existing file to the first free name such as predictions-1.csv; return the new path, or None."""
    if not path.exists():
        return None
    number = 1
    while (free := path.with_stem(f"{path.stem}-{number}")).exists():
        number += 1
    return path.rename(free)
