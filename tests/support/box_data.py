"""Small data sets with boxes that tests write, in the formats of COCO and Pascal VOC."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

COLOURS = {"red": (220, 40, 40), "green": (40, 220, 40), "blue": (40, 40, 220)}
"""The classes of `paint_squares`, and their colours."""
_NUMBERS = {"red": 3, "green": 7, "blue": 9}  # in the files, not consecutive, as in COCO

Square = tuple[str, tuple[int, int, int, int]]
"""The class of a square, and its left, top, right and bottom."""


def paint_squares(path: Path, seed: int, size: tuple[int, int] = (64, 48)) -> list[Square]:
    """Write a grey image with one to three coloured squares on it, and return them."""
    generator = np.random.default_rng(seed)
    pixels = generator.integers(90, 110, (size[1], size[0], 3), dtype=np.uint8)
    squares: list[Square] = []
    for _ in range(int(generator.integers(1, 4))):
        name = str(generator.choice(list(COLOURS)))
        side = int(generator.integers(12, 24))
        left, top = (int(generator.integers(0, limit - side)) for limit in size)
        pixels[top : top + side, left : left + side] = COLOURS[name]
        squares.append((name, (left, top, left + side, top + side)))
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(pixels).save(path)
    return squares


def write_coco_split(
    folder: Path, split: str, count: int, first_seed: int = 0, annotations: Sequence[Mapping[str, Any]] = ()
) -> Path:
    """Write images with squares to `folder/split` and their boxes and outlines to `folder/annotations`.

    Args:
        folder: the data set.
        split: name of the split, such as "train2017".
        count: number of images. Their numbers start at 10.
        first_seed: seed of the first image.
        annotations: further annotations, as in the file.
    """
    images, found = [], []
    for i in range(count):
        name = f"{i:06d}.png"
        squares = paint_squares(folder / split / name, first_seed + i)
        images.append({"id": 10 + i, "file_name": name, "width": 64, "height": 48})
        for colour, (left, top, right, bottom) in squares:
            found.append({
                "id": len(found) + 1, "image_id": 10 + i, "category_id": _NUMBERS[colour],
                "bbox": [left, top, right - left, bottom - top], "area": (right - left) * (bottom - top), "iscrowd": 0,
                "segmentation": [[left, top, right, top, right, bottom, left, bottom]],
            })  # fmt: skip
    categories = [{"id": number, "name": name} for name, number in reversed(_NUMBERS.items())]
    content = {"images": images, "annotations": [*found, *annotations], "categories": categories}
    path = folder / "annotations" / f"instances_{split}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(content))
    return folder


def write_coco(folder: Path, train: int = 8, val: int = 4, test: int = 0) -> Path:
    """Write a data set in COCO's format with this many images of each split."""
    for split, count, seed in (("train2017", train, 0), ("val2017", val, 1000), ("test2017", test, 2000)):
        if count:
            write_coco_split(folder, split, count, seed)
    return folder


def write_voc(folder: Path, splits: Mapping[str, Sequence[Sequence[Square]]]) -> Path:
    """Write a data set in the format of Pascal VOC with grey images of 64×48 pixels.

    Args:
        folder: the data set.
        splits: for each split, the objects of each image. The numbers of a box are written unchanged.
    """
    for part in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (folder / part).mkdir(parents=True, exist_ok=True)
    for split, images in splits.items():
        names = [f"{split}_{i}" for i in range(len(images))]
        (folder / f"ImageSets/Main/{split}.txt").write_text("\n".join(names) + "\n")
        for name, squares in zip(names, images, strict=True):
            Image.new("RGB", (64, 48), (90, 90, 90)).save(folder / f"JPEGImages/{name}.png")
            objects = "".join(_voc_object(*square) for square in squares)
            size = "<size><width>64</width><height>48</height><depth>3</depth></size>"
            text = f"<annotation><filename>{name}.png</filename>{size}{objects}</annotation>"
            (folder / f"Annotations/{name}.xml").write_text(text)
    return folder


def _voc_object(name: str, box: tuple[int, int, int, int]) -> str:
    sides = zip(("xmin", "ymin", "xmax", "ymax"), box, strict=True)
    numbers = "".join(f"<{side}>{value}</{side}>" for side, value in sides)
    return f"<object><name>{name}</name><difficult>0</difficult><bndbox>{numbers}</bndbox></object>"
