"""`TableSource`: a data set that the `datasets` library reads, such as a Hub data set or parquet files on disk."""

from __future__ import annotations

import hashlib
from typing import Any

import numpy as np

from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.find_images import walk_folders
from acmix_zoo.data.sources.image_sets import Images
from acmix_zoo.data.sources.load_table import load_table
from acmix_zoo.data.sources.shards import Shards, has_class_folders, metadata_files
from acmix_zoo.data.sources.table_columns import (
    Classes,
    check_class_count,
    declared_class_names,
    find_image_column,
    find_label_column,
    number_classes,
)
from acmix_zoo.data.sources.table_images import TableImages
from acmix_zoo.data.wording import count_noun, first_few


class TableSource(IndexedSource):
    """Any data set that `datasets.load_dataset` reads and that has an image column and a class column.

    The class column is `label_column`, or else "label", the only ClassLabel column, or "cls", as in WebDataset. If the
    classes are integers, their names are the lines of a classes.txt next to shards on disk, or else the integers.
    Classes that are text are sorted.

    Args:
        source: a parquet or tar file, a folder of such files, an imagefolder with metadata, or an id on the Hub.
        label_column: the column with the class, for tables with more than one candidate.

    Raises:
        FileNotFoundError: there is no such data set on this machine or on the Hub.
        ValueError: it has no image column or no class column, several candidates, or fewer than two classes.
    """

    def __init__(self, source: str, label_column: str | None = None) -> None:
        self.table = load_table(source)
        self.name, self.origin, self.license = self.table.name, self.table.origin, self.table.license
        self.remarks: list[str] = []
        shards, features = self.table.shards, self.table.features
        has_csv = not shards.kind and any(file.suffix == ".csv" for file in metadata_files(shards.path))
        if not shards.kind and shards.path.is_dir():
            unlisted = len(walk_folders([shards.path]).images[0]) - sum(map(len, self.table.splits.values()))
            if unlisted > 0:
                self.remarks.append(f"left out {count_noun(unlisted, 'image')} that no metadata file of a split lists")
        self._hint = " (in a CSV file, words such as NA, None and null stand for no class)" if has_csv else ""
        self.column = find_image_column(features, source)
        try:
            self.label = find_label_column(features, source, self.column, label_column)
        except ValueError as error:
            raise ValueError(f"{error}{_folder_hint(shards)}") from None
        declared = declared_class_names(features[self.label])
        if declared:
            self.classes = Classes(declared)
        else:
            values = self.table.splits["train"].unique(self.label)
            if values == [None]:
                raise ValueError(
                    f"{source}: column {self.label!r} has no class for any image{self._hint}. Expected class names or "
                    "integers"
                )
            self.classes = number_classes(values, self.label, shards.class_names())
        self.class_names = self.classes.names
        check_class_count(self.class_names, self.label, source)

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, table in self.table.splits.items():
            targets = self._targets(table, split)
            if split != "train" and (targets < 0).all():
                continue  # published without labels
            if missing := int((targets < 0).sum()):
                self.remarks.append(f"left out {count_noun(missing, 'image')} of {split} without a class{self._hint}")
            splits[split] = TableImages(table, self.column, targets, f"{self.name}/{split}", self.table.roots)
        return splits

    def _targets(self, table: Any, split: str) -> np.ndarray:
        """Return (N,) int64, the classes of a split; -1 for images without one."""
        values = table.with_format("arrow")[self.label][:]
        if self.classes.numbers is None:
            return np.maximum(np.asarray(values.fill_null(-1).to_numpy(), np.int64), -1)
        labels = values.to_pylist()
        # -1 stands for no class, as in published test splits, unless it is a class of the training split
        known = {-1: -1, None: -1, **self.classes.numbers}
        numbers = [known.get(label, -2) for label in labels]
        if -2 in numbers:
            unknown = sorted({str(label) for label, number in zip(labels, numbers, strict=True) if number == -2})
            raise ValueError(
                f"{self.name}: the split {split} has classes that train does not have: {first_few(unknown)}. Rename or "
                "remove them, or add them to train"
            )
        return np.asarray(numbers, np.int64)

    def fingerprint(self) -> str:
        # A hash of all classes and some images. The fingerprints of `datasets` depend on where the files are.
        digest = hashlib.sha256(repr(self.class_names).encode())
        for images in self.splits.values():
            assert isinstance(images, TableImages)
            digest.update(images.targets.tobytes())
            for part in images.fingerprint_parts():
                digest.update(part)
        return digest.hexdigest()[:16]


def _folder_hint(shards: Shards) -> str:
    """Return how to use class folders despite a metadata file that lists their images without classes, or ""."""
    path = shards.path
    if shards.kind or not path.is_dir() or not has_class_folders(path):
        return ""
    files = first_few([str(file.relative_to(path)) for file in metadata_files(path)])
    return f". To use the names of the folders as classes, rename or move {files}"
