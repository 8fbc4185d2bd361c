"""Data sets of the `datasets` library: an id on the Hub, parquet files, or an imagefolder with metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acmix_zoo.data.images import BadImage, load_image
from acmix_zoo.data.sources import SPLITS, Images, Source

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_table(path: Path) -> bool:
    """True for what `datasets` reads better than the folder reader: parquet files, or an imagefolder with metadata."""
    if path.is_file():
        return path.suffix == ".parquet"
    return path.is_dir() and bool(
        _parquet_files(path) or any(True for name in METADATA for depth in ("", "*/") for _ in path.glob(depth + name))
    )


class HubImages(Images):
    """One split of a table: an image column (encoded files) and a class column."""

    def __init__(self, table: Any, column: str, targets: np.ndarray, name: str) -> None:
        self.table, self.column, self.targets, self.name = table, column, targets, name

    def image(self, index: int) -> Image.Image:
        try:
            encoded = self.file(index)
        except OSError as error:  # kept beside the table, and gone
            raise BadImage(f"image {self.name}[{index}] cannot be read: {error}") from error
        return load_image(encoded, f"{self.name}[{index}]")

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def file(self, index: int) -> bytes:
        """The picture as it was encoded: decoding is ours, so that all sources treat all kinds alike."""
        value = self.table[index][self.column]
        return bytes(value["bytes"]) if value["bytes"] is not None else Path(value["path"]).read_bytes()


class HubSource(Source):
    """Anything `datasets.load_dataset` reads that has an image column and a class column.

    The class column is `label_column`, else the only ClassLabel column, else "label". Classes of text are sorted.

    Raises:
        FileNotFoundError: no such data set here, in the cache or on the Hub.
        ValueError: no image column, no class column, several candidates, fewer than two classes.
    """

    def __init__(self, source: str, label_column: str | None = None) -> None:
        import datasets

        path = Path(source).expanduser()
        local = path.exists()
        self.name = path.resolve().name if local else source
        tables = _load(datasets, source, path)
        self.tables = {SPLITS[name]: table for name, table in tables.items() if name in SPLITS}
        if "train" not in self.tables:
            raise ValueError(f"{source}: expected a split named train, found {', '.join(tables)}")
        train = self.tables["train"]
        self.license = str(train.info.license or "unknown")
        self.column = _image_column(datasets, train.features, source)
        self.label = _label_column(datasets, train.features, source, self.column, label_column)
        self.class_names = _class_names(datasets, train, self.label)
        if len(self.class_names) < 2:
            raise ValueError(f"{source}: column {self.label!r} has {len(self.class_names)} class; expected two or more")
        self._datasets = datasets

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, table in self.tables.items():
            targets = self._targets(table, split)
            if split != "train" and (targets < 0).all():
                continue  # published without its labels
            undecoded = table.select_columns(self.column).cast_column(self.column, self._datasets.Image(decode=False))
            splits[split] = HubImages(undecoded, self.column, targets, f"{self.name}/{split}")
        return splits

    def _targets(self, table: Any, split: str) -> np.ndarray:
        values = table.with_format("numpy")[self.label][:]
        if isinstance(table.features[self.label], self._datasets.ClassLabel):
            return np.asarray(values, np.int64)
        index = {name: number for number, name in enumerate(self.class_names)}
        if strange := sorted({str(value) for value in values} - set(index)):
            raise ValueError(f"{self.name}: split {split} has classes that train does not: {', '.join(strange[:5])}")
        return np.asarray([index[str(value)] for value in values], np.int64)

    def fingerprint(self) -> str:
        # of the contents: the fingerprints of `datasets` depend on where the files lie. All classes, some pictures
        digest = hashlib.sha256(repr(self.class_names).encode())
        for images in self.splits().values():
            assert isinstance(images, HubImages)
            digest.update(images.targets.tobytes())
            for index in np.linspace(0, len(images) - 1, num=min(64, len(images)), dtype=int):
                digest.update(images.file(int(index)))
        return digest.hexdigest()[:16]


def _load(datasets: Any, source: str, path: Path) -> dict[str, Any]:
    try:
        if not path.exists():
            return dict(datasets.load_dataset(source))
        if files := [path] if path.is_file() else _parquet_files(path):
            return dict(datasets.load_dataset("parquet", data_files=_by_split(files)))
        return dict(datasets.load_dataset("imagefolder", data_dir=str(path)))
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        offline = (
            " (HF_HUB_OFFLINE is set, so only the cache was looked at)" if os.environ.get("HF_HUB_OFFLINE") else ""
        )
        raise FileNotFoundError(
            f"source {source!r} is neither a folder here, nor a shipped name (fashion_mnist, digits), "
            f"nor a data set that could be loaded{offline}: {reason}"
        ) from error


def _parquet_files(folder: Path) -> list[Path]:
    return sorted(file for place in (folder, folder / "data") for file in place.glob("*.parquet"))


def _by_split(files: Iterable[Path]) -> dict[str, list[str]]:
    # the Hub's naming: train-00000-of-00002.parquet; anything else is training data
    found: dict[str, list[str]] = {}
    for file in files:
        split = SPLITS.get(file.stem.split("-")[0].split(".")[0].lower(), "train")
        found.setdefault(split, []).append(str(file))
    return found


def _image_column(datasets: Any, features: Any, source: str) -> str:
    def fits(feature: Any) -> bool:
        raw = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        return isinstance(feature, datasets.Image) or raw or getattr(feature, "dtype", "") in ("binary", "large_binary")

    found = [name for name, feature in features.items() if fits(feature)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else found[0]
    raise ValueError(f"{source}: expected one column of images, found {found or 'none'} among {', '.join(features)}")


def _label_column(datasets: Any, features: Any, source: str, image: str, wanted: str | None) -> str:
    if wanted is not None:
        if wanted in features:
            return wanted
        raise ValueError(f"{source}: no column {wanted!r}; there are {', '.join(features)}")
    labels = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    if len(labels) == 1 or "label" in features:
        return "label" if "label" in features else labels[0]
    others = ", ".join(labels or [name for name in features if name != image])
    raise ValueError(f"{source}: which column is the class? Set label_column to one of: {others}")


def _class_names(datasets: Any, table: Any, column: str) -> tuple[str, ...]:
    feature = table.features[column]
    if isinstance(feature, datasets.ClassLabel):
        return tuple(feature.names)
    values = table.unique(column)
    if not all(isinstance(value, str | int) for value in values):
        raise ValueError(f"column {column!r} holds {type(values[0]).__name__}; expected class names or whole numbers")
    return tuple(str(value) for value in sorted(values))
