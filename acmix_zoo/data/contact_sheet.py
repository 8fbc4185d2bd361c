"""Draw images in a grid with a few words below each: what a network sees in them, or which it gets wrong."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from PIL import Image, ImageDraw, ImageOps

from acmix_zoo.data.fonts import font_for

SHEET_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
"""The file extensions of a contact sheet."""
_SIDE, _MARGIN, _LINE = 160, 8, 16  # pixels
_COLUMNS = 6  # at least, unless there are fewer images


def check_sheet_path(path: Path) -> None:
    """Raise a ValueError if a path does not have one of the extensions of a contact sheet."""
    if path.suffix.lower() not in SHEET_SUFFIXES:
        raise ValueError(
            f"{path} has the extension {path.suffix!r}. Expected one of {', '.join(SHEET_SUFFIXES)} for a contact "
            f"sheet. Use {path.with_suffix('.png')}"
        )


def write_contact_sheet(
    path: Path, images: Iterable[Image.Image], titles: Sequence[str], colors: Sequence[str] | None = None
) -> Path:
    """Write images in a grid, each with a title below it.

    Args:
        path: output file, with one of the extensions of `SHEET_SUFFIXES`.
        images: as many images as titles, of any size. They are read one after the other.
        titles: the text below each image. It may have several lines, which are cut to the width of the image.
        colors: for each image, the colour of its text; all are black by default.

    Returns:
        The path.

    Raises:
        ValueError: the extension is not that of a contact sheet, or there are no images.
    """
    check_sheet_path(path)
    if not titles:
        raise ValueError("a contact sheet has no images. Expected at least one. Pass other images")
    columns = min(len(titles), max(_COLUMNS, math.isqrt(len(titles))))
    lines = max(title.count("\n") + 1 for title in titles)
    width, height = _SIDE + _MARGIN, _SIDE + _MARGIN + lines * _LINE
    rows = math.ceil(len(titles) / columns)
    sheet = Image.new("RGB", (columns * width + _MARGIN, rows * height + _MARGIN), "white")
    draw = ImageDraw.Draw(sheet)
    for number, (image, title) in enumerate(zip(images, titles, strict=True)):
        left, top = _MARGIN + number % columns * width, _MARGIN + number // columns * height
        small = ImageOps.contain(image.convert("RGB"), (_SIDE, _SIDE))
        sheet.paste(small, (left + (_SIDE - small.width) // 2, top + (_SIDE - small.height) // 2))
        for row, line in enumerate(title.split("\n")):
            place = (left, top + _SIDE + row * _LINE)
            draw.text(place, shorten(line, _SIDE), colors[number] if colors else "black", font_for(line))
    sheet.save(path)
    return path


def shorten(line: str, width: int) -> str:
    """Return a line of text cut to a width in pixels."""
    if font_for(line).getlength(line) <= width:
        return line
    while line and font_for(line).getlength(line + "…") > width:
        line = line[:-1]
    return line + "…"
