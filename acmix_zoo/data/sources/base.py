"""Where labelled images come from: arrays, files or the `datasets` library, all seen as two small classes."""

from __future__ import annotations

import difflib
import os
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from acmix_zoo.data.images import Inspection, inspect_images, load_image

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CHECK_LIMIT = 100_000  # more files than this are not opened one by one before a run
DECODE_LIMIT = 20_000  # and at most this many are decoded


class Images(ABC):
    """Pictures with their classes: `targets` is (N,) int64, `image(i)` the i-th picture as 8-bit RGB."""

    targets: np.ndarray

    def __len__(self) -> int:
        return len(self.targets)

    @abstractmethod
    def image(self, index: int) -> Image.Image: ...

    def describe(self, index: int) -> str:
        """What to call the i-th picture when talking to people."""
        return f"image {index}"

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Find pictures that cannot be read or have more than 8 bits. If `thorough`, decode every one of them."""
        return Inspection()


class ArrayImages(Images):
    """Pictures in memory: `array` is (N, 1 or 3, H, W) uint8."""

    def __init__(self, array: np.ndarray, targets: np.ndarray) -> None:
        self.array, self.targets = array, targets

    def image(self, index: int) -> Image.Image:
        pixels = self.array[index]  # (C, H, W)
        return Image.fromarray(pixels[0] if len(pixels) == 1 else pixels.transpose(1, 2, 0)).convert("RGB")


class FileImages(Images):
    """Pictures in files."""

    def __init__(self, paths: list[str], targets: np.ndarray) -> None:
        self.paths, self.targets = paths, targets

    def image(self, index: int) -> Image.Image:
        return load_image(self.paths[index])

    def describe(self, index: int) -> str:
        return self.paths[index]

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        if len(indices) > CHECK_LIMIT:
            return Inspection()
        return inspect_images([self.paths[i] for i in indices], thorough and len(indices) <= DECODE_LIMIT)


class Source(ABC):
    """A named data set. `class_names` is known before any picture is read; `splits()` reads once."""

    name: str
    license: str
    origin: str
    """Where the images come from, for the record: "local folder", "local file", "Hugging Face Hub" or a package."""
    class_names: tuple[str, ...]
    remarks: Sequence[str] = ()
    """Remarks about skipped files and likely mistakes."""

    @abstractmethod
    def load(self) -> dict[str, Images]:
        """The splits that exist, of "train", "val" and "test"."""

    @abstractmethod
    def fingerprint(self) -> str:
        """Sixteen hexadecimal digits that change when the data do."""

    @cached_property
    def _splits(self) -> dict[str, Images]:
        return self.load()

    def splits(self) -> dict[str, Images]:
        return self._splits


def match_splits(names: Iterable[str], where: str) -> dict[str, str]:
    """Map "train", "val" and "test" to the names that stand for them; other names are left out.

    Args:
        names: names of splits, for instance "training", "valid", "Test".
        where: name of the data set for error messages.

    Raises:
        ValueError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = SPLITS.get(name.lower())
        if split in found:
            raise ValueError(
                f"{where} has both {found[split]} and {name}, which mean the same split. Expected one of them; merge "
                "them or remove one"
            )
        if split:
            found[split] = name
    return found


def local_name(path: Path) -> str:
    """Return the name of a data set on this machine: the last part of its path.

    The name of a shipped data set, such as "fashion_mnist", gets "_folder" appended, because the bare name in a record
    or in a tag stands for the shipped images.
    """
    from acmix_zoo.data.sources.shipped import SHIPPED

    name = path.expanduser().resolve().name
    return f"{name}_folder" if name.lower().replace("-", "_") in SHIPPED else name


def open_source(source: str | Path, label_column: str | None = None) -> Source:
    """Find out what `source` names and open it.

    Args:
        source: a shipped name ("fashion_mnist", "digits"); a folder of class folders; a parquet file, a folder of
            parquet files or an imagefolder with a metadata file; or the id of a data set for `datasets.load_dataset`.
        label_column: the column with the class, for tables with more than one candidate.

    Raises:
        FileNotFoundError: nothing of that name.
        ValueError: it is there but is no classification data set.
    """
    from acmix_zoo.data.sources.folder import FolderSource
    from acmix_zoo.data.sources.recorded import given_source
    from acmix_zoo.data.sources.shipped import SHIPPED
    from acmix_zoo.data.sources.table import HubSource, is_table

    if (given := given_source()) is not None:
        return given
    text = str(source)
    path = Path(text).expanduser()
    if text in SHIPPED:
        shipped = SHIPPED[text]()
        if path.is_dir():
            folder = path.resolve()
            shipped.remarks = [f"these are the shipped images, not those in {folder}; to use those, give ./{text}"]
        return shipped
    if text and is_table(path):
        return HubSource(text, label_column)
    if text and path.is_dir():
        return FolderSource(path)
    if path.is_file():
        raise ValueError(f"source {text} is a file; expected a folder of class folders, or a parquet file")
    check_hub_id(text)
    return HubSource(text, label_column)


def check_hub_id(text: str) -> None:
    """Check that a source which does not exist locally could be a Hub id, before half a minute is spent asking the Hub.

    Raises:
        FileNotFoundError: it is not of the form org/name, or resembles an existing folder.
    """
    from acmix_zoo.data.sources.shipped import SHIPPED

    path = Path(text).expanduser()
    beside = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()] if path.parent.is_dir() else []
    near = [str(path.parent / name) for name in difflib.get_close_matches(path.name, beside, n=3)]
    is_id = text.count("/") == 1 and text[0] not in "./~" and not text.endswith("/") and "\\" not in text
    if is_id and not near:
        return
    near += difflib.get_close_matches(text, SHIPPED, n=1)
    hint = f". Did you mean {' or '.join(near)}?" if near else ""
    raise FileNotFoundError(
        f"source {text!r} does not exist; expected a folder, a data set id of the Hub (org/name), or one of "
        f"{', '.join(SHIPPED)}{hint}. Looked for {os.path.abspath(path)}; give the present place with --data.source"
    )


def first_few(names: Sequence[str], most: int = 5) -> str:
    """Return the first few names separated by commas, and the number of the others."""
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")


def counted(count: int, noun: str) -> str:
    """Return a number with its noun: "1 image", "2,000 images"."""
    return f"{count:,} {noun}{'s' * (count != 1)}"
