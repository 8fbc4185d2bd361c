"""Draw the first training images of a run as the network receives them: augmented, resized, mixed and with targets."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from PIL import Image

from acmix_zoo.data.contact_sheet import write_contact_sheet
from acmix_zoo.data.resumable import ResumableDataModule
from acmix_zoo.tasks import Task

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
    preprocessing = data.preprocessing()
    mean, std = (torch.tensor(preprocessing[name]).view(-1, 1, 1) for name in ("mean", "std"))
    pictures, titles = [], []
    for number, image in enumerate(batch[0][:_MOST_IMAGES]):
        pixels = (image.detach().float().cpu() * std + mean).clamp(0, 1).mul(255).round().byte()  # (3, H, W)
        picture = Image.fromarray(pixels.permute(1, 2, 0).numpy())
        target = module.show_target(picture, batch, number, data.class_names)
        pictures.append(target.picture)
        titles.append(target.title)
    try:
        write_contact_sheet(path, pictures, titles)
    except OSError as error:
        print(f"Warning: could not write {path}: {error.strerror or error}. Training continues", flush=True)
