"""`read_coco_file`: read an annotation file in COCO's format, and check that its entries have what is needed."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NoReturn

from acmix_zoo.data.text_files import read_text
from acmix_zoo.data.wording import first_few


def read_coco_file(path: Path) -> dict[str, Any]:
    """Return the content of an annotation file. File names in it have slashes, also if they were written on Windows.

    Raises:
        ValueError: the file is not in COCO's format. The message names the first wrong entry.
    """
    text = read_text(path)
    try:
        content = json.loads(text)
    except ValueError as error:
        raise ValueError(f"{path} is not a JSON file: {error}. Replace it by a file in COCO's format") from None
    keys = ("images", "annotations", "categories")
    missing = [key for key in keys if not isinstance(content, dict) or not isinstance(content.get(key), list)]
    if missing:
        found = first_few(list(content)) if isinstance(content, dict) else type(content).__name__
        raise ValueError(f"{path} has no list of {' and '.join(missing)}, only {found}. Expected COCO's format")
    for key in keys:
        for number, entry in enumerate(content[key]):
            if not isinstance(entry, dict):
                _reject(path, key, number, entry, "an object {…}")
    _check_images(path, content["images"])
    _check_categories(path, content["categories"])
    has_texts = bool(content["images"]) and isinstance(content["images"][0]["id"], str)
    kind, id_type = ("a string", str | None) if has_texts else ("an integer", int | float | None)
    for number, annotation in enumerate(content["annotations"]):  # those without ids are counted later
        if not isinstance(annotation.get("image_id"), id_type):
            _reject(path, "annotations", number, annotation, f"{kind} as image_id, like the ids of the images")
        if not isinstance(annotation.get("category_id"), int | float | None):
            _reject(path, "annotations", number, annotation, "an integer as category_id")
        if annotation.get("iscrowd") not in (None, 0, 1):
            _reject(path, "annotations", number, annotation, "iscrowd to be the number 0 or 1")
    return dict(content)


def _check_images(path: Path, images: list[dict[str, Any]]) -> None:
    """Check the entries of images, and replace backslashes in their file names."""
    id_type = type(images[0].get("id")) if images else int
    seen: set[int | str] = set()
    for number, image in enumerate(images):
        if not isinstance(image.get("file_name"), str) or not image["file_name"]:
            _reject(path, "images", number, image, "a file_name")
        if id_type not in (int, str) or type(image.get("id")) is not id_type:
            _reject(path, "images", number, image, "an id, an integer or a string, of the same type in all images")
        if image["id"] in seen:  # its boxes would be those of another image
            _reject(path, "images", number, image, "an id that no other image has")
        seen.add(image["id"])
        if any(not isinstance(image.get(side) or 0, int | float) for side in ("width", "height")):
            _reject(path, "images", number, image, "numbers as width and height")
        image["file_name"] = image["file_name"].replace("\\", "/")


def _check_categories(path: Path, categories: list[dict[str, Any]]) -> None:
    names: dict[int, str] = {}
    for number, category in enumerate(categories):
        if not isinstance(category.get("name"), str | int) or category["name"] == "":
            _reject(path, "categories", number, category, "a name")
        if not isinstance(category.get("id"), int):
            _reject(path, "categories", number, category, "an integer as id")
        if names.setdefault(category["id"], str(category["name"])) != str(category["name"]):
            _reject(path, "categories", number, category, f"an id that {names[category['id']]!r} does not have")


def _reject(path: Path, key: str, number: int, entry: Mapping[str, Any] | Any, expected: str) -> NoReturn:
    shown = json.dumps(entry, ensure_ascii=False)
    shown = shown if len(shown) <= 100 else f"{shown[:100]}…"
    raise ValueError(f"{path}: the entry {number} of {key} is {shown}. Expected {expected}. Correct or remove it")
