"""Plot images next to their masks and the predicted masks."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageDraw

from acmix_zoo.data.contact_sheet import shorten
from acmix_zoo.data.fonts import font_for
from acmix_zoo.data.masks.mask_classes import VOID, default_palette, palette_image

_WIDTH = 320  # pixels of a column
_LINE = 16  # height of a line of text


class MaskExample(NamedTuple):
    """An image with two masks.

    Attributes:
        image: (3, H, W) uint8.
        truth: (h, w) uint8, the class of each pixel, or `VOID`.
        found: (h, w) uint8, the predicted class of each pixel.
    """

    image: np.ndarray
    truth: np.ndarray
    found: np.ndarray


def plot_masks(examples: Sequence[MaskExample], class_names: Sequence[str], path: Path) -> Path:
    """Write a PNG with a row for each example: the image, its mask, the predicted mask; and the colours of the classes.

    Pixels without a class are white in both masks.
    """
    rows = [_row(example, len(class_names)) for example in examples]
    legend = _legend(class_names, 3 * _WIDTH)
    height = _LINE + sum(row.height for row in rows) + legend.height
    picture = Image.new("RGB", (3 * _WIDTH, height), "white")
    draw = ImageDraw.Draw(picture)
    for column, title in enumerate(("image", "truth", "prediction")):
        draw.text((column * _WIDTH + 4, 2), title, fill="black")
    top = _LINE
    for row in [*rows, legend]:
        picture.paste(row, (0, top))
        top += row.height
    picture.save(path)
    return path


def _row(example: MaskExample, class_count: int) -> Image.Image:
    image = Image.fromarray(example.image.transpose(1, 2, 0))
    height = max(1, round(image.height * _WIDTH / image.width))
    found = np.where(example.truth == VOID, VOID, example.found).astype(np.uint8)
    row = Image.new("RGB", (3 * _WIDTH, height))
    row.paste(image.resize((_WIDTH, height)), (0, 0))
    for column, mask in ((1, example.truth), (2, found)):
        colours = palette_image(mask, class_count).convert("RGB")
        row.paste(colours.resize((_WIDTH, height), Image.Resampling.NEAREST), (column * _WIDTH, 0))
    return row


def _legend(class_names: Sequence[str], width: int) -> Image.Image:
    """Return the colour and the name of each class, six in a line."""
    columns = 6
    step, lines = width // columns, -(-len(class_names) // columns)
    picture = Image.new("RGB", (width, lines * (_LINE + 2) + 4), "white")
    draw = ImageDraw.Draw(picture)
    for number, (name, colour) in enumerate(zip(class_names, default_palette(len(class_names)), strict=True)):
        left, top = number % columns * step, number // columns * (_LINE + 2) + 4
        draw.rectangle((left + 2, top, left + 14, top + 12), fill=colour, outline="black")
        draw.text((left + 18, top), shorten(name, step - 22), "black", font_for(name))
    return picture
