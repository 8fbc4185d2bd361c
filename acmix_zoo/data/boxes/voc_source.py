"""`VocSource`: a folder in the layout of Pascal VOC, with one XML file of boxes per image."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ET
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acmix_zoo.data.boxes.annotated_images import AnnotatedImages, BoxSource, known_sizes
from acmix_zoo.data.boxes.objects import UNKNOWN, BoxCheck, Objects, make_objects
from acmix_zoo.data.formats import is_image_name
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.split_names import listed_names, local_name, read_split_lists
from acmix_zoo.data.text_files import read_text
from acmix_zoo.data.wording import count_noun, first_few

_IMAGES, _ANNOTATIONS, _SPLITS, _CLASSES = "JPEGImages", "Annotations", "ImageSets/Main", "classes.txt"


def is_voc_folder(path: Path) -> bool:
    """Return whether a folder has the layout of Pascal VOC."""
    return (path / _IMAGES).is_dir() and (path / _ANNOTATIONS).is_dir()


class VocSource(BoxSource):
    """Images in JPEGImages/, boxes in Annotations/, and the names of each split's images in ImageSets/Main/.

    The classes are the lines of a classes.txt in the folder, or else the sorted names in the training annotations.
    Without ImageSets/Main/, all images are training images. Objects that are marked as difficult are treated like
    COCO's crowds: training leaves them out, and evaluation ignores them.

    Args:
        source: the folder.

    Raises:
        ValueError: a file cannot be read, or the training images have no boxes.
    """

    license, origin = "unknown", "local folder"
    split_advice = f"Add the names of its images as {_SPLITS}/{{split}}.txt"

    def __init__(self, source: str) -> None:
        self.folder = Path(source).expanduser()
        self.name = local_name(self.folder)
        self.check = BoxCheck()
        self.remarks = []
        images = [path for path in sorted((self.folder / _IMAGES).iterdir()) if is_image_name(path.name)]
        files = {path.stem: path for path in images}
        self._shadowed = {path.stem: path for path in images if files[path.stem] != path}
        self._records = {split: self._read_split(split, names, files) for split, names in self._names(files).items()}
        self.class_names = self._class_names()
        self.category_ids = tuple(range(1, len(self.class_names) + 1))

    def _names(self, files: dict[str, Path]) -> dict[str, list[str]]:
        """Return the names of the images of each split."""
        lists = read_split_lists(self.folder / _SPLITS)
        if not lists:
            return {"train": list(files)}
        folder = self.folder / _SPLITS
        return {split: listed_names(lines, files, split, folder, _IMAGES) for split, lines in lists.items()}

    def _read_split(self, split: str, names: list[str], files: dict[str, Path]) -> list[_Record]:
        annotations = self.folder / _ANNOTATIONS
        usable = [name for name in names if name in files and (annotations / f"{name}.xml").is_file()]
        if twin := next((name for name in usable if name in self._shadowed), None):
            raise ValueError(
                f"{self._shadowed[twin]} and {files[twin]} differ only in their extension, so they would share one "
                "annotation file. Expected one image for each name. Rename or remove one of them"
            )
        missing = sorted(set(names) - set(usable))
        if missing:
            remark = (
                f"{split}: left out {count_noun(len(missing), 'image')} without an image file or an annotation file"
            )
            self.remarks = [*self.remarks, f"{remark} ({first_few(missing, 3)})"]
        return [read_annotation(annotations / f"{name}.xml", files[name]) for name in usable]

    def _class_names(self) -> tuple[str, ...]:
        file = self.folder / _CLASSES
        if file.is_file():
            lines = (line.strip() for line in read_text(file).splitlines())
            return tuple(dict.fromkeys(line for line in lines if line))
        names = sorted({name for record in self._records["train"] for name in record.names})
        if not names:
            raise ValueError(f"{self.folder}: the training images have no boxes. Expected <object> in their XML files")
        return tuple(names)

    def load(self) -> dict[str, Images]:
        return {split: self._annotated(records) for split, records in self._records.items()}

    def _annotated(self, records: list[_Record]) -> AnnotatedImages:
        numbers = {name: number for number, name in enumerate(self.class_names)}
        cleaned = []
        paths = [str(record.image) for record in records]
        images = FileImages(paths, np.zeros(len(paths), np.int64))
        sizes = known_sizes([record.size for record in records], images, are_required=False)
        for (image, _, names, objects), size in zip(records, sizes, strict=True):
            for name in names:
                if name not in numbers:
                    self.check.count_unknown_class(image.name, name)
            classes = np.array([numbers.get(name, UNKNOWN) for name in names], np.int64)
            known = objects._replace(classes=classes).select(classes != UNKNOWN)
            cleaned.append(self.check.clean(known, size, image.name))
        return AnnotatedImages(images, cleaned, sizes)


class _Record(NamedTuple):
    """The content of an annotation file.

    Attributes:
        image: the image file.
        size: (width, height) in pixels; None if it is not stated.
        names: the class of each object.
        objects: the objects, without classes.
    """

    image: Path
    size: tuple[int, int] | None
    names: list[str]
    objects: Objects


def read_annotation(path: Path, image: Path) -> _Record:
    """Read an annotation file of Pascal VOC.

    The first pixel of an image is number 1 there, and the last one belongs to the box.

    Args:
        path: the file.
        image: the image that it describes.

    Raises:
        ValueError: the file is not an XML file.
    """
    try:
        root = _parse(path)
    except (ET.ParseError, ValueError, LookupError) as error:
        raise ValueError(f"{path} is not a valid XML file: {error}. Repair it, or remove its image") from None
    found = root.findall("object")
    boxes = np.array([[_number(each, f"bndbox/{side}") for side in _SIDES] for each in found]).reshape(-1, 4)
    has_area = (boxes[:, 2:] > boxes[:, :2]).all(1, keepdims=True)
    boxes[:, :2] -= has_area  # two equal corners stay equal: a box that was clicked by mistake, not one of a pixel
    width, height = _number(root, "size/width"), _number(root, "size/height")
    return _Record(
        image,
        (int(width), int(height)) if width > 0 and height > 0 else None,
        [(each.findtext("name") or "").strip() for each in found],
        make_objects(boxes, np.full(len(found), UNKNOWN), [_number(each, "difficult") == 1 for each in found]),
    )


def _parse(path: Path) -> ET.Element:
    """Parse an XML file in any encoding that Python knows. The parser alone knows no Chinese ones, such as GB2312."""
    content = path.read_bytes()
    declaration = re.match(rb"\s*<\?xml[^>]*?encoding\s*=\s*[\"']([\w.-]+)[\"'][^>]*\?>", content)
    if declaration is None or declaration[1].lower().startswith((b"utf", b"us-ascii")):
        return ET.fromstring(content)
    encoding = declaration[1].decode().lower()
    # files that state GB2312 often have characters that only its extensions know
    encoding = "gb18030" if encoding in ("gb2312", "gbk") else encoding
    return ET.fromstring(content[declaration.end() :].decode(encoding))


_SIDES = ("xmin", "ymin", "xmax", "ymax")


def _number(element: ET.Element, path: str) -> float:
    """Return a number of an XML element, or NaN."""
    try:
        return float(element.findtext(path) or "nan")
    except ValueError:
        return float("nan")
