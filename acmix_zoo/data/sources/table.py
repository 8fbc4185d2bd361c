"""Data sets of the `datasets` library: an id on the Hub, shards on disk, or an imagefolder with metadata."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acmix_zoo.data.images import BadImage, load_image
from acmix_zoo.data.sources.base import Images, Source, local_name, match_splits
from acmix_zoo.data.sources.paths import allowed_roots, checked_path
from acmix_zoo.data.sources.shards import Shards

METADATA = ("metadata.csv", "metadata.jsonl", "metadata.parquet")


def is_table(path: Path) -> bool:
    """True for what `datasets` reads better than the folder reader: shards, or an imagefolder with metadata."""
    return bool(Shards(path).kind) or (
        path.is_dir() and any(True for name in METADATA for depth in ("", "*/") for _ in path.glob(depth + name))
    )


class HubImages(Images):
    """One split of a table: an image column (encoded files) and a class column."""

    def __init__(self, table: Any, column: str, targets: np.ndarray, name: str, roots: tuple[str, ...]) -> None:
        self.table, self.column, self.targets, self.name, self.roots = table, column, targets, name, roots
        for chunk in table.data.column(column).chunks:  # check all paths before the first training step
            encoded, paths = chunk.field("bytes"), chunk.field("path")
            if encoded.null_count:
                for path in paths.filter(encoded.is_null()).drop_null().to_pylist():
                    checked_path(path, roots)

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
        value = self.table[index][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if not value.get("path"):
            raise BadImage(f"image {self.describe(index)} cannot be read: its cell in the table is empty")
        return Path(checked_path(value["path"], self.roots)).read_bytes()


class HubSource(Source):
    """Anything `datasets.load_dataset` reads that has an image column and a class column.

    The class column is `label_column`, else the only ClassLabel column, else "label", else "cls", as WebDataset has it.
    Names of classes that come as bare numbers are the lines of a classes.txt beside shards on disk, else the numbers;
    classes of text are sorted.

    Raises:
        FileNotFoundError: no such data set here, in the cache or on the Hub.
        ValueError: no image column, no class column, several candidates, fewer than two classes.
    """

    def __init__(self, source: str, label_column: str | None = None) -> None:
        import datasets

        path = Path(source).expanduser()
        self.name = local_name(path) if path.exists() else source
        self.origin = origin_of(path)
        self.roots = allowed_roots(source)
        shards = Shards(path)
        tables = load_tables(source, shards)
        self.tables = {split: tables[name] for split, name in match_splits(tables, source).items()}
        if "train" not in self.tables:
            raise ValueError(f"{source}: expected a split named train, found {', '.join(tables)}")
        train = self.tables["train"]
        self.license = str(train.info.license or "unknown")
        self.column = image_column_of(train.features, source)
        self.label = label_column_of(train.features, source, self.column, label_column)
        feature = train.features[self.label]
        if isinstance(feature, datasets.ClassLabel):
            self.class_names, self.classes = tuple(feature.names), None
        else:
            self.class_names, self.classes = classes_of(train.unique(self.label), self.label, shards.class_names())
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
            splits[split] = HubImages(undecoded, self.column, targets, f"{self.name}/{split}", self.roots)
        return splits

    def _targets(self, table: Any, split: str) -> np.ndarray:
        values = table.with_format("arrow")[self.label][:]
        if values.null_count == len(values):
            return np.full(len(values), -1, np.int64)
        if self.classes is None:
            return np.asarray(values.to_numpy(), np.int64)
        numbers = [self.classes.get(value, -1) for value in values.to_pylist()]
        if -1 in numbers:
            strange = sorted({str(v) for v, n in zip(values.to_pylist(), numbers, strict=True) if n < 0})
            raise ValueError(f"{self.name}: split {split} has classes that train does not: {', '.join(strange[:5])}")
        return np.asarray(numbers, np.int64)

    def fingerprint(self) -> str:
        # of the contents: the fingerprints of `datasets` depend on where the files lie. All classes, some pictures
        digest = hashlib.sha256(repr(self.class_names).encode())
        for images in self.splits().values():
            assert isinstance(images, HubImages)
            digest.update(images.targets.tobytes())
            for index in np.linspace(0, len(images) - 1, num=min(64, len(images)), dtype=int):
                digest.update(images.file(int(index)))
        return digest.hexdigest()[:16]


def origin_of(path: Path) -> str:
    """Return where a data set comes from that `path` names, or that is on the Hub if there is no such path."""
    if path.exists():
        return "local folder" if path.is_dir() else "local file"
    return "Hugging Face Hub"


def load_tables(source: str, shards: Shards, streaming: bool = False) -> dict[str, Any]:
    """The splits of a data set as `datasets` has them; `shards` are those that `source` names, if any.

    Raises:
        FileNotFoundError: no such data set here, in the cache or on the Hub.
        ValueError: a folder has two subfolders for the same split.
    """
    import datasets

    try:
        if shards.kind:
            return dict(datasets.load_dataset(shards.kind, data_files=shards.files, streaming=streaming))
        if shards.path.exists():  # `datasets` would merge val/ and validation/
            match_splits((entry.name for entry in os.scandir(shards.path) if entry.is_dir()), source)
            return dict(datasets.load_dataset("imagefolder", data_dir=str(shards.path), streaming=streaming))
        return dict(datasets.load_dataset(source, streaming=streaming))
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        offline = (
            " (HF_HUB_OFFLINE is set, so only the cache was looked at)" if os.environ.get("HF_HUB_OFFLINE") else ""
        )
        raise FileNotFoundError(
            f"source {source!r} is neither a folder here ({os.path.abspath(shards.path)}), nor a shipped name "
            f"(fashion_mnist, digits), nor a data set that could be loaded{offline}: {reason}"
        ) from error


def image_column_of(features: Any, source: str) -> str:
    """The column of images: "image", or the only one.

    Raises:
        ValueError: none, or several.
    """
    import datasets

    def fits(feature: Any) -> bool:
        raw = isinstance(feature, dict) and {"bytes", "path"} <= set(feature)
        return isinstance(feature, datasets.Image) or raw or getattr(feature, "dtype", "") in ("binary", "large_binary")

    found = [name for name, feature in features.items() if fits(feature)]
    if "image" in found or len(found) == 1:
        return "image" if "image" in found else str(found[0])
    raise ValueError(f"{source}: expected one column of images, found {found or 'none'} among {', '.join(features)}")


def label_column_of(features: Any, source: str, image: str, wanted: str | None) -> str:
    """The column of classes.

    Raises:
        ValueError: no such column as wanted, or it is not clear which one it is.
    """
    import datasets

    if wanted is not None:
        if wanted in features:
            return wanted
        raise ValueError(f"{source}: no column {wanted!r}; there are {', '.join(features)}")
    labels: list[str] = [name for name, feature in features.items() if isinstance(feature, datasets.ClassLabel)]
    for name in ("label", *labels[: len(labels) == 1], "cls"):
        if name in features:
            return name
    others = ", ".join(labels or [name for name in features if name != image])
    raise ValueError(f"{source}: which column is the class? Set label_column to one of: {others}")


def classes_of(
    values: Iterable[Any], column: str, given: tuple[str, ...] | None
) -> tuple[tuple[str, ...], dict[Any, int]]:
    """Names of the classes, and the number of each value of the class column.

    Args:
        values: those that come up in training. given: names to be had for values 0, 1, 2, …

    Raises:
        ValueError: values that are neither text nor whole numbers, or that no name was given for.
    """
    found = [value for value in values if value is not None]
    kinds = sorted({type(value).__name__ for value in found})
    if kinds not in (["str"], ["int"]):
        came = " and ".join(kinds) or "nothing"
        raise ValueError(f"column {column!r} holds {came}; expected class names or whole numbers")
    found.sort()
    if given is None or kinds == ["str"]:
        return tuple(str(value) for value in found), {value: number for number, value in enumerate(found)}
    if not 0 <= found[0] <= found[-1] < len(given):
        raise ValueError(f"column {column!r} has classes {found[0]} to {found[-1]}, and {len(given)} names were given")
    return given, {number: number for number in range(len(given))}
