"""`BoxTable`: a data set with a column of boxes that the `datasets` library reads, on the Hub or as parquet files."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages, BoxSource, is_same_size, known_sizes
from acmix_zoo.data.boxes.coco_api import encode_mask
from acmix_zoo.data.boxes.coco_source import corners
from acmix_zoo.data.boxes.objects import UNKNOWN, BoxCheck, Objects, make_objects
from acmix_zoo.data.sources.image_sets import CHECK_LIMIT, Images
from acmix_zoo.data.sources.load_table import load_table
from acmix_zoo.data.sources.table_columns import Classes, declared_class_names, find_image_column, number_classes
from acmix_zoo.data.sources.table_images import TableImages
from acmix_zoo.data.wording import count_noun, first_few

_COLUMN = "objects"
_CLASS_FIELDS = ("category", "category_id", "label")


class BoxTable(BoxSource):
    """A table with a column of images and a column "objects", as the detection data sets on the Hub have.

    Each cell of "objects" has the lists `bbox` and `category` (or `category_id`, or `label`), one entry for each
    object, and possibly `area`, `iscrowd` and `segmentation`. The classes have the names that the table declares.
    Otherwise, they are the values in the training split, sorted.

    Args:
        source: a parquet file, a folder of such files, an imagefolder with metadata, or an id on the Hub.
        box_format: what the four numbers of a box are: "xywh" (left, top, width, height, as in COCO) or "xyxy" (left,
            top, right, bottom, as in Pascal VOC).
        has_masks: read the segmentation of each object.

    Raises:
        FileNotFoundError: there is no such data set on this machine or on the Hub.
        ValueError: a column is missing.
    """

    def __init__(self, source: str, box_format: str = "xywh", has_masks: bool = False) -> None:
        self.table = load_table(source)
        self.name, self.origin, self.license = self.table.name, self.table.origin, self.table.license
        self.box_format, self.has_masks = box_format, has_masks
        self.check = BoxCheck()
        self.column = find_image_column(self.table.features, source)
        self.fields = _object_fields(self.table.features, source)
        self.class_field = next(name for name in _CLASS_FIELDS if name in self.fields)
        if has_masks and "segmentation" not in self.fields:
            raise ValueError(
                f"{source} has no masks. Expected a field `segmentation` in the column {_COLUMN!r}, which has "
                f"{', '.join(self.fields)}. Set data.masks to false"
            )
        declared = _declared_names(self.fields[self.class_field])
        if declared:
            self.classes = Classes(declared)
        else:
            cells = self.table.splits["train"].select_columns(_COLUMN)
            values = {value for row in cells for value in _field(row[_COLUMN], self.class_field)}
            self.classes = number_classes(values, f"{_COLUMN}.{self.class_field}", self.table.shards.class_names())
        self.class_names = self.classes.names
        in_table = tuple(self.classes.numbers or range(len(self.class_names)))  # a type with class names counts from 0
        has_numbers = all(isinstance(value, int) for value in in_table)
        self.category_ids = in_table if has_numbers else tuple(range(1, len(in_table) + 1))

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, table in self.table.splits.items():
            zeros = np.zeros(len(table), np.int64)
            images = TableImages(table, self.column, zeros, f"{self.name}/{split}", self.table.roots)
            sizes = known_sizes(_stated_sizes(table), images, are_required=self.has_masks)
            cells = table.select_columns(_COLUMN)
            objects = [
                self._objects(row[_COLUMN], size, images.describe(i))
                for i, (row, size) in enumerate(zip(cells, sizes, strict=True))
            ]
            splits[split] = AnnotatedImages(images, objects, sizes)
            if wrong := _wrong_sizes(images, sizes) if _has_sizes(table) else []:
                self.remarks = [
                    *self.remarks,
                    f"{split}: {count_noun(len(wrong), 'image')} of another size than the columns width and height "
                    f"state, so that the boxes may be wrong (in {first_few(wrong, 3)})",
                ]
        clipped = len(set(self.check.images["clipped to their image"]))
        if self.box_format == "xywh" and 2 * clipped > sum(map(len, splits.values())):
            self.remarks = [
                *self.remarks,
                "most images have boxes that extend beyond them. If the numbers of a box are left, top, right and "
                "bottom, set data.box_format to xyxy",
            ]
        return splits

    def _objects(self, cell: Any, size: tuple[int, int] | None, name: str) -> Objects:
        """Return the usable objects of an image.

        Args:
            cell: the value of the column of objects.
            size: (width, height) of the image, if it is known.
            name: the name of the image for messages.
        """
        if self.has_masks and size is None:  # an unreadable image, which is reported and skipped
            return make_objects([], [], masks=[])
        labels = _field(cell, self.class_field)
        numbers = np.array([self._number(label) for label in labels], np.int64)
        for label, number in zip(labels, numbers, strict=True):
            if number == UNKNOWN:
                self.check.count_unknown_class(name, str(label))
        count = len(labels)
        is_crowd = _field(cell, "iscrowd", count) if "iscrowd" in self.fields else None
        areas = _field(cell, "area", count) if "area" in self.fields else None
        masks = None
        if self.has_masks and size is not None:
            try:
                masks = [encode_mask(each, size[1], size[0]) for each in _field(cell, "segmentation", count)]
            except ValueError as error:
                raise ValueError(f"{name} {error}") from error
        boxes = [corners(box, self.box_format) for box in _field(cell, "bbox", count)]
        objects = make_objects(boxes, numbers, is_crowd, areas, masks)
        return self.check.clean(objects.select(numbers != UNKNOWN), size, name)

    def _number(self, label: Any) -> int:
        if self.classes.numbers is not None:
            return self.classes.numbers.get(label, UNKNOWN)
        return int(label) if label is not None and 0 <= int(label) < len(self.class_names) else UNKNOWN


def _object_fields(features: Any, source: str) -> Mapping[str, Any]:
    """Return the fields of the column of objects, which is a list of dicts or a dict of lists."""
    if _COLUMN not in features:
        raise ValueError(
            f"{source} has no column {_COLUMN!r}, only {', '.join(features)}. Expected a data set with boxes, each "
            "cell of that column with the lists `bbox` and `category`"
        )
    inner = getattr(features[_COLUMN], "feature", features[_COLUMN])
    inner = inner[0] if isinstance(inner, list) else inner
    fields: Mapping[str, Any] = inner if isinstance(inner, Mapping) else {}
    if "bbox" not in fields or not any(name in fields for name in _CLASS_FIELDS):
        raise ValueError(
            f"{source}: the column {_COLUMN!r} has the fields {', '.join(fields)}. Expected `bbox` and `category`"
        )
    return fields


def _declared_names(feature: Any) -> tuple[str, ...] | None:
    """Return the names of the classes that the type of the class field declares, if any."""
    feature = feature[0] if isinstance(feature, list) else feature
    return declared_class_names(getattr(feature, "feature", feature))


def _field(cell: Any, name: str, count: int | None = None) -> list[Any]:
    """Return a field of all objects in a cell.

    Args:
        cell: a dict of lists, a list of dicts, or None.
        name: name of the field.
        count: the expected number of objects, if it is known.

    Raises:
        ValueError: the field has another number of values.
    """
    if isinstance(cell, Mapping):
        values = list(cell[name] or [])
    else:
        values = [each[name] for each in cell or []]
    if count is not None and len(values) != count:
        raise ValueError(
            f"a cell of the column {_COLUMN!r} has {len(values)} values of {name} for {count} objects. Expected one "
            "for each object"
        )
    return values


def _stated_sizes(table: Any) -> list[tuple[int, int] | None]:
    """Return the (width, height) of each image that the columns of these names state."""
    if not _has_sizes(table):
        return [None] * len(table)
    pairs = zip(table["width"], table["height"], strict=True)
    return [(int(width), int(height)) if width and height else None for width, height in pairs]


def _has_sizes(table: Any) -> bool:
    return {"width", "height"} <= set(table.features)


def _wrong_sizes(images: TableImages, sizes: Sequence[tuple[int, int] | None]) -> list[str]:
    """Return the names of images of another size than stated. Large tables are not checked."""
    if len(images) > CHECK_LIMIT:
        return []
    pairs = [(stated, images.header_size(i)) for i, stated in enumerate(sizes)]
    return [images.describe(i) for i, (a, b) in enumerate(pairs) if a and b and not is_same_size(a, b)]
