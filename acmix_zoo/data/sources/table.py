"""`TableSource`: a data set that the `datasets` library reads, such as a Hub data set or parquet files on disk."""

from __future__ import annotations

import glob
import hashlib
import os
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acmix_zoo.data.images import UnreadableImage, image_size, load_image
from acmix_zoo.data.inspection import Inspection, inspect_cells
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import DECODE_LIMIT, Images
from acmix_zoo.data.sources.path_safety import allowed_roots, checked_path
from acmix_zoo.data.sources.shards import Shards, has_class_folders, has_metadata, metadata_files
from acmix_zoo.data.sources.split_names import local_name, match_splits
from acmix_zoo.data.sources.table_columns import (
    Classes,
    check_class_count,
    find_image_column,
    find_label_column,
    number_classes,
)
from acmix_zoo.data.wording import count_noun, first_few


def is_table(path: Path) -> bool:
    """Return whether a path is a table: shards, or an imagefolder with metadata."""
    return bool(Shards(path).kind) or (path.is_dir() and has_metadata(path))


class TableImages(Images):
    """Images of one split of a table.

    Args:
        table: a `datasets.Dataset` whose image column is not decoded.
        column: the image column. Each value has the bytes of an image file, or its path.
        targets: (N,) int64.
        name: name of the split for messages.
        roots: the folders below which files named by path must be.

    Raises:
        ValueError: a path is outside of `roots`.
    """

    def __init__(self, table: Any, column: str, targets: np.ndarray, name: str, roots: tuple[str, ...]) -> None:
        self.table, self.column, self.targets, self.name, self.roots = table, column, targets, name, roots
        self.has_files = False  # whether images are in files that the table names
        for chunk in table.data.column(column).chunks:  # check all paths before the first training step
            encoded, paths = chunk.field("bytes"), chunk.field("path")
            if encoded.null_count:
                self.has_files = True
                for path in paths.filter(encoded.is_null()).drop_null().to_pylist():
                    checked_path(path, roots)

    def image(self, index: int) -> Image.Image:
        try:
            encoded = self.encoded_image(index)
        except OSError as error:  # a file next to the table that no longer exists
            raise UnreadableImage(f"image {self.describe(index)} cannot be read: {error}") from error
        return load_image(encoded, self.describe(index))

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def encoded_image(self, index: int) -> bytes:
        """Return the bytes of an image file. All sources decode with `load_image`, so that all formats agree."""
        cell = self._cell(index)
        return cell if isinstance(cell, bytes) else Path(cell).read_bytes()

    def header_size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image, or None if it cannot be read."""
        try:
            return image_size(self.encoded_image(index))
        except (OSError, UnreadableImage):
            return None

    def _cell(self, index: int) -> bytes | str:
        """Return the bytes of an image file, or its path if it is not in the table."""
        value = self.table[index][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if not value.get("path"):
            raise UnreadableImage(f"image {self.describe(index)} cannot be read: its cell in the table is empty")
        return str(checked_path(value["path"], self.roots))

    def fingerprint_parts(self) -> Iterator[bytes]:
        """Yield the bytes of up to 64 images, and none for one that cannot be read."""
        for index in np.linspace(0, len(self) - 1, num=min(64, len(self)), dtype=int).tolist():
            try:
                yield self.encoded_image(index)
            except (OSError, UnreadableImage):
                yield b""

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Decode every image if `thorough`. Otherwise, only check files, which may be missing."""
        if len(indices) > DECODE_LIMIT or not (thorough or self.has_files):
            return Inspection()
        numbers = [int(index) for index in indices]
        return inspect_cells([self.describe(n) for n in numbers], lambda i: self._cell(numbers[i]), thorough)


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
        path = Path(source).expanduser()
        self.name = local_name(path) if path.exists() else source
        self.remarks: list[str] = []
        self.origin = table_origin(path)
        self.roots = allowed_roots(source)
        shards = Shards(path)
        has_csv = not shards.kind and any(file.suffix == ".csv" for file in metadata_files(path))
        self._hint = " (in a CSV file, words such as NA, None and null stand for no class)" if has_csv else ""
        self.tables = select_splits(load_tables(source, shards), source)
        train = self.tables["train"]
        self.license = str(train.info.license or "unknown")
        self.column = find_image_column(train.features, source)
        try:
            self.label = find_label_column(train.features, source, self.column, label_column)
        except ValueError as error:
            raise ValueError(f"{error}{_folder_hint(path, shards)}") from None
        declared = declared_class_names(train.features[self.label])
        if declared:
            self.classes = Classes(declared)
        else:
            values = train.unique(self.label)
            if values == [None]:
                raise ValueError(
                    f"{source}: column {self.label!r} has no class for any image{self._hint}. Expected class names or "
                    "integers"
                )
            self.classes = number_classes(values, self.label, shards.class_names())
        self.class_names = self.classes.names
        check_class_count(self.class_names, self.label, source)

    def load(self) -> dict[str, Images]:
        import datasets

        splits: dict[str, Images] = {}
        for split, table in self.tables.items():
            targets = self._targets(table, split)
            if split != "train" and (targets < 0).all():
                continue  # published without labels
            if missing := int((targets < 0).sum()):
                self.remarks.append(f"left out {count_noun(missing, 'image')} of {split} without a class{self._hint}")
            undecoded = table.select_columns(self.column).cast_column(self.column, datasets.Image(decode=False))
            splits[split] = TableImages(undecoded, self.column, targets, f"{self.name}/{split}", self.roots)
        return splits

    def _targets(self, table: Any, split: str) -> np.ndarray:
        """Return (N,) int64, the classes of a split; -1 for images without one."""
        values = table.with_format("arrow")[self.label][:]
        if self.classes.numbers is None:
            return np.maximum(np.asarray(values.fill_null(-1).to_numpy(), np.int64), -1)
        labels = values.to_pylist()
        numbers = [-1 if label is None else self.classes.numbers.get(label, -2) for label in labels]
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


def _folder_hint(path: Path, shards: Shards) -> str:
    """Return how to use class folders despite a metadata file that lists their images without classes, or ""."""
    if shards.kind or not path.is_dir() or not has_class_folders(path):
        return ""
    files = first_few([str(file.relative_to(path)) for file in metadata_files(path)])
    return f". To use the names of the folders as classes, rename or move {files}"


def table_origin(path: Path) -> str:
    """Return where the data set at `path` comes from. If the path does not exist, it is the id of a Hub data set."""
    if path.exists():
        return "local folder" if path.is_dir() else "local file"
    return "Hugging Face Hub"


def declared_class_names(feature: Any) -> tuple[str, ...] | None:
    """Return the class names of a ClassLabel column; None for other columns."""
    import datasets

    return tuple(feature.names) if isinstance(feature, datasets.ClassLabel) else None


def select_splits(tables: dict[str, Any], data_name: str) -> dict[str, Any]:
    """Return the tables for "train", "val" and "test", as far as they exist.

    Raises:
        ValueError: there is no training split, or two tables mean the same split.
    """
    selected = {split: tables[name] for split, name in match_splits(tables, data_name).items()}
    if "train" not in selected:
        raise ValueError(f"{data_name} has no split named train, only {', '.join(tables)}. Rename the training split")
    return selected


def load_tables(source: str, shards: Shards, streaming: bool = False) -> dict[str, Any]:
    """Return the splits of a data set as `datasets` names them.

    Args:
        source: a path or an id on the Hub.
        shards: the shards at that path, if any.
        streaming: return tables that are read shard by shard.

    Raises:
        FileNotFoundError: there is no such data set on this machine or on the Hub.
        ValueError: a folder has two subfolders for the same split, or a metadata file is not UTF-8.
    """
    import datasets

    try:
        if shards.kind:
            # `datasets` reads paths as patterns, in which brackets have a meaning
            files = {split: [glob.escape(file) for file in found] for split, found in shards.files.items()}
            return dict(datasets.load_dataset(shards.kind, data_files=files, streaming=streaming))
        if shards.path.exists():  # `datasets` would merge val/ and validation/
            match_splits((entry.name for entry in os.scandir(shards.path) if entry.is_dir()), source)
            return dict(
                datasets.load_dataset("imagefolder", data_dir=glob.escape(str(shards.path)), streaming=streaming)
            )
        return dict(datasets.load_dataset(source, streaming=streaming))
    except UnicodeDecodeError as error:
        raise ValueError(
            f"{source} has a metadata file that is not UTF-8 text ({error}). Expected UTF-8. Save the file as UTF-8"
        ) from error
    except ValueError as error:
        if "different features" not in str(error):
            raise
        raise ValueError(
            f"the metadata files of {source} have columns of different types, such as numbers in one, and text or "
            f"missing values in another ({str(error)[:300]}). Expected the same types in all. Fill in missing values, "
            "and write class names that are not numbers, such as class1"
        ) from error
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        offline = " (HF_HUB_OFFLINE is set, so only the cache was searched)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise FileNotFoundError(
            f"could not load the source {source!r}{offline}: {reason}. Expected a folder on this machine (looked for "
            f"{os.path.abspath(shards.path)}), a shipped name (fashion_mnist, digits), or the id of a Hub data set"
        ) from error
