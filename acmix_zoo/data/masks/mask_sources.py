"""Where images and their masks come from: folders with files of the same names, or a table with two image columns."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import numpy as np

from acmix_zoo.data.masks.class_list import ClassOptions
from acmix_zoo.data.masks.mask_folder import LAYOUT, MaskFolder
from acmix_zoo.data.masks.mask_images import MaskImages, MaskSource
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import Images
from acmix_zoo.data.sources.load_table import is_table, load_table
from acmix_zoo.data.sources.open import is_hub_id, source_not_found
from acmix_zoo.data.sources.recorded import current_recorded_source
from acmix_zoo.data.sources.table_images import TableImages

MASK_COLUMNS = ("mask", "annotation", "segmentation_mask", "semantic_mask", "label", "labels")
SOURCE_KINDS = (
    f"a folder with images and masks ({LAYOUT}), a parquet file or a folder of such files with a column of images and "
    "one of masks, or the id of such a data set on the Hugging Face Hub"
)
"""What a source of images with masks is, in words."""


def open_mask_source(source: str, options: ClassOptions, mask_column: str | None = None) -> IndexedSource:
    """Open a data set of images and masks.

    Args:
        source: a folder of images and masks; a parquet file or a folder of such files; or the id of a Hub data set.
        options: how masks encode classes.
        mask_column: the column of masks, for tables in which it is not clear.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it is not a data set of images and masks. The message says what to do.
    """
    recorded = current_recorded_source()
    if recorded is not None:
        return recorded
    path = Path(source).expanduser()
    if (path.exists() and is_table(path)) or is_hub_id(source):
        return MaskTable(source, options, mask_column)
    if path.is_dir():
        return MaskFolder(path, options)
    raise source_not_found(source, SOURCE_KINDS)


class MaskTable(MaskSource):
    """A Hub data set or parquet files with a column of images and one of masks.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it has no such columns, several candidates, or there is no class list.
    """

    def __init__(self, source: str, options: ClassOptions, mask_column: str | None = None) -> None:
        self.table = load_table(source)
        self.name, self.origin, self.license = self.table.name, self.table.origin, self.table.license
        self.image_column, self.mask_column = find_columns(self.table.features, source, mask_column)
        self.classes = options.resolve(self.table.shards.path, source)
        self.class_names = self.classes.names

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, table in self.table.splits.items():
            columns = []
            for column in (self.image_column, self.mask_column):
                targets = np.zeros(len(table), np.int64)
                name = f"{self.name}/{split}" + f".{column}" * (column == self.mask_column)
                columns.append(TableImages(table, column, targets, name, self.table.roots))
            splits[split] = MaskImages(columns[0], columns[1], self.classes)
        return splits

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for images in self.splits.values():
            assert isinstance(images, MaskImages) and isinstance(images.masks, TableImages)
            digest.update(str(len(images)).encode())
            assert isinstance(images.images, TableImages)
            for pair in zip(images.images.fingerprint_parts(), images.masks.fingerprint_parts(), strict=True):
                digest.update(b"".join(pair))
        return digest.hexdigest()[:16]


def find_columns(features: Mapping[str, object], source: str, requested: str | None) -> tuple[str, str]:
    """Return the names of the columns of images and of masks.

    Args:
        features: the columns of a table and their types.
        source: name of the data set for messages.
        requested: the column of masks that the user has named, if any.

    Raises:
        ValueError: there are no such columns.
    """
    import datasets

    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image | dict)]
    if requested is not None and requested not in pictures:
        raise ValueError(f"{source}: no image column {requested!r}. Expected one of {', '.join(pictures) or 'none'}")
    mask = requested or next((name for name in MASK_COLUMNS if name in pictures), None)
    image = "image" if "image" in pictures else next((name for name in pictures if name != mask), None)
    if mask is None or image is None or image == mask:
        raise ValueError(
            f"{source}: expected a column of images and one of masks ({', '.join(MASK_COLUMNS)}), found "
            f"{', '.join(features)}. Set data.mask_column to the column of masks"
        )
    return image, mask
