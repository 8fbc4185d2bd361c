"""Write the detections of `predict` as a file in COCO's format."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    from acmix_zoo.tasks.detection import ImageDetections


def coco_image(detections: ImageDetections, category_ids: Sequence[int]) -> dict[str, Any]:
    """Return the detections in an image as plain values: its position, size, and annotations without numbers."""
    from acmix_zoo.data.boxes.coco_api import coco_api

    annotations = []
    for i, (box, number, score) in enumerate(
        zip(detections.boxes.tolist(), detections.classes.tolist(), detections.scores.tolist(), strict=True)
    ):
        left, top, right, bottom = (round(side, 2) for side in box)
        sides = round(right - left, 2), round(bottom - top, 2)
        annotation = {
            "category_id": category_ids[number], "bbox": [left, top, *sides], "area": round(sides[0] * sides[1], 2),
            "iscrowd": 0, "score": round(score, 5),
        }  # fmt: skip
        if detections.masks is not None:
            encoded = coco_api().mask.encode(np.asfortranarray(detections.masks[i].numpy().astype(np.uint8)))
            annotation["area"] = float(coco_api().mask.area(encoded))
            annotation["segmentation"] = {"size": list(encoded["size"]), "counts": _text(encoded["counts"])}
        annotations.append(annotation)
    height, width = detections.size
    return {"position": detections.image, "height": height, "width": width, "annotations": annotations}


def coco_content(
    images: Sequence[dict[str, Any]], paths: Sequence[str], class_names: Sequence[str], category_ids: Sequence[int]
) -> dict[str, Any]:
    """Return the content of the file.

    Images whose names are all different numbers, as in COCO, have them as their ids. Otherwise, ids count from 1.

    Args:
        images: the results of `coco_image`, in the order of `paths`.
        paths: the paths of all images.
        class_names: the names of the classes.
        category_ids: the number of each class in the file.
    """
    stems = [Path(path).stem for path in paths]
    is_numbered = all(stem.isdecimal() for stem in stems) and len({int(stem) for stem in stems}) == len(stems)
    ids = [int(stem) if is_numbered else i + 1 for i, stem in enumerate(stems)]
    content: dict[str, Any] = {
        "images": [
            {"id": ids[each["position"]], "file_name": paths[each["position"]], **_size(each)} for each in images
        ],
        "annotations": [],
        "categories": [{"id": number, "name": name} for number, name in zip(category_ids, class_names, strict=True)],
    }
    for each in images:
        for annotation in each["annotations"]:
            number = len(content["annotations"]) + 1
            content["annotations"].append({"id": number, "image_id": ids[each["position"]], **annotation})
    return content


def write_coco(path: Path, content: dict[str, Any]) -> None:
    """Write the content of `coco_content`."""
    with path.open("w", encoding="utf-8", errors="surrogateescape") as file:
        json.dump(content, file, ensure_ascii=False)


def _size(image: dict[str, Any]) -> dict[str, int]:
    return {"width": image["width"], "height": image["height"]}


def _text(counts: str | bytes) -> str:
    return counts.decode() if isinstance(counts, bytes) else counts
