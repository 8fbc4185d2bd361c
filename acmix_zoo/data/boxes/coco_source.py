"""`CocoSource`: a folder with annotation files in COCO's format."""

from __future__ import annotations

import math
import re
from collections import Counter, defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages, BoxSource, known_sizes
from acmix_zoo.data.boxes.coco_api import encode_mask
from acmix_zoo.data.boxes.coco_classes import CocoClasses
from acmix_zoo.data.boxes.coco_file import read_coco_file
from acmix_zoo.data.boxes.objects import UNKNOWN, BoxCheck, Objects, make_objects
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.path_safety import checked_path
from acmix_zoo.data.sources.split_names import local_name, match_splits
from acmix_zoo.data.wording import count_noun, first_few

_PREFIX = "instances_"
_EXPORT = "_annotations.coco.json"  # in the folder of each split, as labelling services export it


def find_annotation_files(folder: Path) -> dict[str, Path]:
    """Return the annotation file of each split: annotations/instances_train2017.json, annotations/train.json, or
    train/_annotations.coco.json."""
    if not folder.is_dir():
        return {}
    exported = {path.parent.name: path for path in sorted(folder.glob(f"*/{_EXPORT}"))}
    files = sorted((folder / "annotations").glob("*.json"))
    instances = [path for path in files if path.stem.startswith(_PREFIX)]
    named = {re.sub(r"\d{4}$", "", path.stem.removeprefix(_PREFIX)): path for path in instances or files}
    candidates = exported or named
    return {split: candidates[name] for split, name in match_splits(candidates, str(folder)).items()}


def is_coco_folder(path: Path) -> bool:
    """Return whether a folder has annotation files in COCO's format."""
    return bool(find_annotation_files(path))


class CocoSource(BoxSource):
    """A folder with annotation files in COCO's format, and images in the folders that COCO or labelling services use.

    Boxes of crowds (`iscrowd`) are left out of training, and detections of them are not counted as wrong.

    Args:
        source: the folder.
        has_masks: read the segmentation of each object.

    Raises:
        ValueError: there is no training split, or a file is not in COCO's format.
        FileNotFoundError: there are no images where the files say.
    """

    origin = "local folder"
    split_advice = f"Add annotations/instances_{{split}}.json or {{split}}/{_EXPORT}"

    def __init__(self, source: str, has_masks: bool = False) -> None:
        self.folder = Path(source).expanduser().absolute()
        self.name = local_name(self.folder)
        self.has_masks = has_masks
        self.check = BoxCheck()
        self._files = find_annotation_files(self.folder)
        if "train" not in self._files:
            raise ValueError(
                f"{self.folder} has annotations for {', '.join(self._files)}, but not for training. Expected "
                "annotations/instances_train….json or train/_annotations.coco.json"
            )
        self._contents = {split: read_coco_file(path) for split, path in self._files.items()}
        content = self._contents["train"]
        used = {annotation.get("category_id") for annotation in content["annotations"]}
        self.classes = CocoClasses(content["categories"], used)
        self.class_names, self.category_ids = self.classes.names, self.classes.category_ids
        self.remarks = [self.classes.remark] * bool(self.classes.remark)
        licenses = {str(each.get("name")) for each in content.get("licenses") or [] if each.get("name")}
        self.license = licenses.pop() if len(licenses) == 1 else "unknown"

    def load(self) -> dict[str, Images]:
        loaded: dict[str, Images] = {}
        for split in list(self._contents):
            loaded[split] = self._annotated(split, self._contents.pop(split))  # free each file: COCO's need gigabytes
        return loaded

    def _annotated(self, split: str, content: dict[str, Any]) -> AnnotatedImages:
        entries = sorted(content["images"], key=lambda entry: entry["id"])
        folder = self._image_folder(split, entries)
        known = {entry["id"] for entry in entries}
        annotations: dict[Any, list[dict[str, Any]]] = defaultdict(list)
        for annotation in content["annotations"]:
            if annotation.get("image_id") in known:
                annotations[annotation["image_id"]].append(annotation)
            else:
                self.check.count("of unknown images", str(annotation.get("image_id")))
        numbers = self.classes.numbers(content["categories"])
        names = {category["id"]: str(category["name"]) for category in content["categories"]}
        paths = [self._checked_path(split, folder / entry["file_name"]) for entry in entries]
        if repeated := [name for name, count in Counter(paths).items() if count > 1]:
            shown = first_few([Path(path).name for path in repeated], 3)
            self.remarks = [
                *self.remarks,
                f"{split}: {count_noun(len(repeated), 'image')} listed more than once: {shown}",
            ]
        images = FileImages(paths, np.zeros(len(paths), np.int64))
        sizes = known_sizes([_stated_size(entry) for entry in entries], images, are_required=self.has_masks)
        try:
            objects = [
                self._objects(str(entry["file_name"]), size, annotations[entry["id"]], numbers, names)
                for entry, size in zip(entries, sizes, strict=True)
            ]
        except ValueError as error:
            raise ValueError(f"{self._files[split]}: {error}") from error
        return AnnotatedImages(images, objects, sizes)

    def _checked_path(self, split: str, path: Path) -> str:
        try:
            return checked_path(str(path), (str(self.folder),))
        except ValueError:
            raise ValueError(
                f"{self._files[split]} lists the image {path}, which is not below {self.folder}. Expected images "
                "within the data set. Move them into it, and correct each file_name"
            ) from None

    def _image_folder(self, split: str, images: list[dict[str, Any]]) -> Path:
        """Return the folder that the file names of a split refer to."""
        stem = self._files[split].stem.removeprefix(_PREFIX)
        names = [f"images/{stem}", stem, f"images/{split}", split, "images", "."]
        folders = [self._files[split].parent, *(self.folder / name for name in dict.fromkeys(names))]
        if self._files[split].name != _EXPORT:
            folders = folders[1:]
        if not images:
            return folders[0]
        for image in images:  # not the first one alone, which may be the only one that is missing
            for folder in folders:
                if (folder / image["file_name"]).exists():
                    return folder
        raise FileNotFoundError(
            f"{self._files[split]} lists the image {images[0]['file_name']}, which is in none of "
            f"{', '.join(str(folder.relative_to(self.folder)) for folder in folders)} below {self.folder}, and neither "
            "is any other of its images. Put the images into one of these folders"
        )

    def _objects(
        self,
        name: str,
        size: tuple[int, int] | None,
        annotations: list[dict[str, Any]],
        numbers: Mapping[int, int],
        category_names: Mapping[int, str],
    ) -> Objects:
        """Return the usable objects of an image.

        Args:
            name: the name of the image, for messages.
            size: (width, height) of the image, if it is known.
            annotations: as in the file.
            numbers: the class of each category id.
            category_names: the name of each category id in the file, for messages.
        """
        if self.has_masks and size is None:  # an unreadable image, which is reported and skipped
            return make_objects([], [], masks=[])
        boxes, classes, is_crowd, areas, masks = [], [], [], [], []
        for annotation in annotations:
            category: Any = annotation.get("category_id")
            number = numbers.get(category, UNKNOWN)
            if number == UNKNOWN:
                self.check.count_unknown_class(name, category_names.get(category, str(category)))
                continue
            boxes.append(corners(annotation.get("bbox"), "xywh"))
            classes.append(number)
            is_crowd.append(bool(annotation.get("iscrowd", 0)))
            areas.append(_finite(annotation.get("area")))
            if self.has_masks and size is not None:
                masks.append(self._mask(annotation, name, size))
        objects = make_objects(boxes, classes, is_crowd, areas, masks if self.has_masks else None)
        return self.check.clean(objects, size, name)

    @staticmethod
    def _mask(annotation: dict[str, Any], name: str, size: tuple[int, int]) -> Any:
        """Return the mask of an object in an image of this name and (width, height)."""
        try:
            return encode_mask(annotation.get("segmentation"), size[1], size[0])
        except ValueError as error:
            raise ValueError(f"the annotation of id {annotation.get('id')} (of {name}) {error}") from error


def _stated_size(image: Mapping[str, Any]) -> tuple[int, int] | None:
    """Return the (width, height) that a file states for an image."""
    width, height = (_finite(image.get(side)) or 0 for side in ("width", "height"))
    return (int(width), int(height)) if width >= 1 and height >= 1 else None  # masks need integers


def _finite(value: Any) -> float | None:
    """Return a value as a number, or None if it is not a finite one."""
    try:
        return number if math.isfinite(number := float(value)) else None
    except (TypeError, ValueError):
        return None


def corners(box: Any, box_format: str) -> list[float]:
    """Return a box as left, top, right and bottom, or as four NaN if it is not four numbers.

    Args:
        box: four numbers.
        box_format: "xywh" (left, top, width, height, as in COCO) or "xyxy" (as in Pascal VOC).
    """
    try:
        a, b, c, d = (float(value) for value in box)
    except (TypeError, ValueError):
        return [float("nan")] * 4
    return [a, b, a + c, b + d] if box_format == "xywh" else [a, b, c, d]
