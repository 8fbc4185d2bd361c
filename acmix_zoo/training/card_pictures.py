"""Select the pictures of a run that its model card shows, and make them small.

Pictures that show images of the data set are only published if the licence that the data set states allows it.
"""

from __future__ import annotations

import io
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from PIL import Image

from acmix_zoo.weights.card import CardPicture

_SIDE = 1200  # pixels; longer sides are reduced to this
_COLOURS = 64  # enough for a plot
# Licences that allow anyone to publish the images again, as data sets on the Hub state them.
_PUBLISHABLE = {"apache-2.0", "cc-by-4.0", "cc-by-sa-4.0", "cc0-1.0", "mit", "odc-by", "pddl"}


def card_pictures(folder: Path, split: str, dataset: Mapping[str, Any]) -> list[CardPicture]:
    """Return the pictures in a run folder that its model card can show.

    Args:
        folder: the run folder.
        split: the split that was evaluated completely, whose pictures are in the folder of this name; "" for none.
        dataset: the record of the data, with its name and licence.
    """
    found = {"curves.png": "Loss, scores and learning rate of every epoch"}
    license, source = str(dataset.get("license")), f"images of {dataset['name']}, {dataset.get('license')}"
    is_publishable = license.lower() in _PUBLISHABLE
    where = "validation split" if split == "val" else f"{split} split"
    if split:
        found[f"{split}/confusion.png"] = f"Confusion matrix on the {where}"
    if split and is_publishable:
        found[f"{split}/mistakes.png"] = f"The most confident mistakes on the {where} ({source})"
    if is_publishable:
        found["predictions.png"] = f"Images with what the network found in them ({source})"
    return [_shrink(folder / name, caption) for name, caption in found.items() if (folder / name).is_file()]


def _shrink(path: Path, caption: str) -> CardPicture:
    """Return a plot as a PNG with few colours, and a picture of images as a JPEG."""
    has_images = path.name in ("mistakes.png", "predictions.png")
    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((_SIDE, _SIDE))
    file = io.BytesIO()
    if has_images:
        small.save(file, "JPEG", quality=75)
    else:
        small.quantize(_COLOURS).save(file, "PNG", optimize=True)
    return CardPicture(f"{path.stem}.{'jpg' if has_images else 'png'}", caption, file.getvalue())
