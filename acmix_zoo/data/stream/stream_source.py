"""What can be streamed: parquet and tar shards on disk, and data sets of the Hugging Face Hub."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path
from typing import Any

from acmix_zoo.data.sources.base import check_hub_id, local_name, match_splits
from acmix_zoo.data.sources.paths import allowed_roots
from acmix_zoo.data.sources.shards import Shards, read_classes
from acmix_zoo.data.sources.shipped import SHIPPED
from acmix_zoo.data.sources.table import classes_of, image_column_of, label_column_of, load_tables, origin_of
from acmix_zoo.data.stream.reader import Streamed


class StreamSource:
    """A data set that is read in passing; only its shards' footers or headers are looked at before.

    Parquet files on disk are read a row group at a time. Their class names, if not stored with them, and the number of
    images in tar files without timm's _info.json take a look through all shards; classes.txt beside the shards, or
    `classes_file`, saves the former.

    Args:
        source: a parquet or tar file, a folder of such files, or the id of a data set on the Hub.
        label_column: the column with the class, for tables with more than one candidate.
        classes_file: a text file with a class name a line, for labels that are bare numbers.

    Attributes:
        splits: those that exist of "train", "val" and "test"; one that was published without its labels is left out.

    Raises:
        FileNotFoundError: no such data set. ValueError: it cannot be streamed; says why.
    """

    def __init__(self, source: str | Path, label_column: str | None = None, classes_file: str | None = None) -> None:
        import datasets

        text = str(source)
        path = Path(text).expanduser()
        self._shards = Shards(path)
        if text in SHIPPED or (path.exists() and not self._shards.kind):
            raise ValueError(f"streaming is for tables and shards; the images of {text} are read one by one without it")
        if not self._shards.kind:
            check_hub_id(text)
        self.name = local_name(path) if self._shards.kind else text
        self.origin = origin_of(path)
        tables = load_tables(text, self._shards, streaming=True)
        found = {split: (name, tables[name]) for split, name in match_splits(tables, text).items()}
        if "train" not in found:
            raise ValueError(f"{text}: expected a split named train, found {', '.join(tables)}")
        train = found["train"][1]
        features = train.features or {}
        self.license = str(train.info.license or "unknown")
        image = image_column_of(features, text)
        label = label_column_of(features, text, image, label_column)
        classes: dict[Any, int] | None = None
        if isinstance(features[label], datasets.ClassLabel):
            self.class_names = tuple(features[label].names)
        else:
            self.class_names, classes = self._classes(label, classes_file)
        if len(self.class_names) < 2:
            raise ValueError(f"{text}: column {label!r} has {len(self.class_names)} class; expected two or more")
        roots = allowed_roots(text, streaming=True)
        self.splits: dict[str, Streamed] = {}
        for split, (named, table) in found.items():
            table = table.select_columns([image, label])
            if isinstance(features[image], datasets.Image):  # decoding is ours, so that all sources treat all alike
                table = table.cast_column(image, datasets.Image(decode=False))
            if split != "train" and _unlabelled(table, label):
                continue
            pieces = self._shards.pieces(split) if self._shards.kind else []
            known = (train.info.splits or {}).get(named)
            size = self._shards.size(split, label) if self._shards.kind else known and known.num_examples
            self.splits[split] = Streamed(
                f"{self.name}/{split}", table, image, label, classes, len(self.class_names), pieces, size or None, roots
            )

    def _classes(self, label: str, classes_file: str | None) -> tuple[tuple[str, ...], dict[Any, int]]:
        given = read_classes(classes_file) if classes_file else self._shards.class_names()
        if given:
            return given, {number: number for number in range(len(given))} | {n: i for i, n in enumerate(given)}
        if self._shards.kind:
            return classes_of(self._shards.labels("train", label), label, None)
        raise ValueError(
            f"{self.name}: column {label!r} does not say which classes there are; give classes_file, a text file with "
            "a class name a line"
        )

    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when the data do: of the files, or the Hub's commit."""
        if self._shards.kind:
            marks = "\n".join(self._shards.marks())
            return hashlib.sha256(f"{self.class_names!r}\n{marks}".encode()).hexdigest()[:16]
        from huggingface_hub import HfApi

        return str(HfApi(endpoint=os.environ.get("HF_ENDPOINT")).dataset_info(self.name).sha)[:16]


def _unlabelled(table: Any, label: str) -> bool:
    """Whether the first labels are all missing, or -1, as published test splits have it."""
    first: dict[str, list[Any]] = next(iter(table.select_columns([label]).iter(batch_size=16)), {label: []})
    return all(value is None or value == -1 for value in first[label])
