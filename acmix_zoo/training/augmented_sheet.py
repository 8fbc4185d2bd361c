"""Draw the first training images of a run as the network receives them: augmented, resized, mixed and with targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
from PIL import Image

from acmix_zoo.data.contact_sheet import write_contact_sheet
from acmix_zoo.data.prepared_image import without_normalisation
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.tasks import Task
from acmix_zoo.training.evaluation_files import warn_of_failure

_MOST_IMAGES = 24


def write_augmented(trainer: L.Trainer, module: L.LightningModule, batch: Any, path: Path) -> None:
    """Write a contact sheet of the images of a training batch. A failure to write is printed.

    Args:
        module: the task. Nothing is drawn for modules of other programs, whose batches may hold anything.
        batch: the batch as `training_step` gets it.
        path: the PNG file.
    """
    data = getattr(trainer, "datamodule", None)
    if not (isinstance(module, Task) and isinstance(data, ResumableDataModule)):
        return
    pictures, titles = [], []
    with warn_of_failure(path):
        for number, image in enumerate(batch[0][:_MOST_IMAGES]):
            normalised = image.detach().float().cpu()[None]  # (1, 3, H, W)
            (picture,) = without_normalisation(normalised, data.pixels.mean, data.pixels.std)
            target = module.show_target(Image.fromarray(picture), batch, number, data.class_names)
            pictures.append(target.picture)
            titles.append(target.title)
        write_contact_sheet(path, pictures, titles)
