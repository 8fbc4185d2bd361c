"""`StreamSource`: a data set that is read shard by shard. Parquet and tar files on disk, or a data set of the Hub."""

from __future__ import annotations

import hashlib
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from acmix_zoo.data.sources.base import Source
from acmix_zoo.data.sources.installed_sources import SHIPPED
from acmix_zoo.data.sources.load_table import load_table
from acmix_zoo.data.sources.open import is_hub_id, source_not_found
from acmix_zoo.data.sources.shards import ShardFile, Shards, read_class_names
from acmix_zoo.data.sources.table_columns import (
    Classes,
    check_class_count,
    declared_class_names,
    find_image_column,
    find_label_column,
    number_classes,
)


@dataclass(frozen=True)
class StreamSplit:
    """One split of a stream.

    Attributes:
        name: name for messages.
        table: a `datasets.IterableDataset` with the columns `image`, not decoded, and `label`.
        image: name of the image column.
        label: name of the class column.
        classes: the classes.
        files: the table's files, whose row groups are the shards; empty if they are not known, and the files are the
            shards.
        size: number of images; None if it is not known.
        roots: where images that the table references by path must be, see `acmix_zoo.data.sources.path_safety`.
    """

    name: str
    table: Any
    image: str
    label: str
    classes: Classes
    files: list[ShardFile]
    size: int | None
    roots: tuple[str, ...] = ()


class StreamSource(Source):
    """A data set that is read shard by shard. Before training, only the footers or headers of the shards are read.

    All shards are searched for class names that are not stored with them, and tar files without timm's _info.json for
    their number of images. A classes.txt next to the shards, or `classes_file`, avoids the search for class names.

    Args:
        source: a parquet or tar file, a folder of such files, or the id of a data set on the Hub.
        label_column: the column with the class, for tables with more than one candidate.
        classes_file: a text file with one class name per line, for classes that are integers without names.

    Attributes:
        splits: the splits that exist, out of "train", "val" and "test". One that was published without labels is
            ignored.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: the data set cannot be streamed. The message says why.
    """

    def __init__(self, source: str | Path, label_column: str | None = None, classes_file: str | None = None) -> None:
        import datasets

        name = str(source)
        path = Path(name).expanduser()
        shards = Shards(path)
        if name in SHIPPED or (path.exists() and not shards.kind):
            raise ValueError(
                f"{name} cannot be streamed, because it is neither a table nor tar files. Set data.streaming to false"
            )
        if not shards.kind and not is_hub_id(name):
            raise source_not_found(name)
        loaded = load_table(name, streaming=True)
        self._shards, features = loaded.shards, loaded.features
        self.name, self.origin, self.license = loaded.name, loaded.origin, loaded.license
        image = find_image_column(features, name)
        label = find_label_column(features, name, image, label_column)
        declared = declared_class_names(features[label])
        classes = Classes(declared) if declared else self._find_classes(label, classes_file)
        self.class_names = classes.names
        check_class_count(self.class_names, label, name)
        self.splits: dict[str, StreamSplit] = {}
        for split, table in loaded.splits.items():
            columns = table.select_columns([image, label])
            if isinstance(features[image], datasets.Image):  # all sources decode with `load_image`
                columns = columns.cast_column(image, datasets.Image(decode=False))
            if split != "train" and _is_unlabelled(columns, label):
                continue
            self.splits[split] = StreamSplit(
                f"{self.name}/{split}",
                columns,
                image,
                label,
                classes,
                self._shards.split_files(split) if self._shards.kind else [],
                self._size(split, label, loaded.published_names[split], table.info),
                loaded.roots,
            )

    def _find_classes(self, label: str, classes_file: str | None) -> Classes:
        """Return the classes of a table that does not declare them."""
        names = read_class_names(classes_file) if classes_file else self._shards.class_names()
        if names:
            numbers = {number: number for number in range(len(names))}
            return Classes(names, numbers | {name: number for number, name in enumerate(names)})
        if self._shards.kind:
            return number_classes(self._shards.labels("train", label), label, None)
        raise ValueError(
            f"{self.name}: the column {label!r} has no class names. Set data.classes_file to a text file with one "
            "class name per line"
        )

    def _size(self, split: str, label: str, published_name: str, info: Any) -> int | None:
        """Return the number of images of a split; None if it is not known."""
        if self._shards.kind:
            return self._shards.size(split, label) or None
        published = (info.splits or {}).get(published_name)
        return (published and published.num_examples) or None

    def fingerprint(self) -> str:
        """Return a hash of the files, or the Hub's commit."""
        if self._shards.kind:
            files = "\n".join(self._shards.fingerprints())
            return hashlib.sha256(f"{self.class_names!r}\n{files}".encode()).hexdigest()[:16]
        from huggingface_hub import HfApi

        return str(HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(self.name).sha)[:16]


def _is_unlabelled(table: Any, label: str) -> bool:
    """Return whether the first labels are all missing or -1, as in published test splits."""
    first: dict[str, list[Any]] = next(iter(table.select_columns([label]).iter(batch_size=16)), {label: []})
    return all(value is None or value == -1 for value in first[label])
