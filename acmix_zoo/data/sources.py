"""Where labelled images come from: arrays, class folders or the `datasets` library, all seen as two small classes."""

from __future__ import annotations

import hashlib
import os
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cached_property
from pathlib import Path

import numpy as np
from PIL import Image

from acmix_zoo.data.images import bad_images, find_images, is_image_name, load_image

SPLITS = {"train": "train", "training": "train", "val": "val", "valid": "val", "validation": "val", "test": "test"}
CHECK_LIMIT = 100_000  # more files than this are not opened one by one before a run


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

    def problems(self, indices: Sequence[int]) -> list[str]:
        """One message for each of these pictures that cannot be read, as far as a quick look tells."""
        return []


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

    def problems(self, indices: Sequence[int]) -> list[str]:
        return bad_images(self.paths[i] for i in indices) if len(indices) <= CHECK_LIMIT else []


class Source(ABC):
    """A named data set. `class_names` is known before any picture is read; `splits()` reads once."""

    name: str
    license: str
    class_names: tuple[str, ...]

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


class FolderSource(Source):
    """A folder of class folders: `root/<class>/**/picture`, or the same below `root/train`, `root/val`, `root/test`.

    Classes are the sorted names of the training split's folders. Hidden folders and files that are not named like
    pictures are passed over.

    Raises:
        ValueError: no class folder, one class only, a class folder without a picture, or a class in val or test that
            the training split does not know.
    """

    license = "unknown"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.name = self.root.resolve().name
        names = _folders(self.root)
        # a class may be called "train", so split folders are those that hold class folders
        found = {SPLITS[name.lower()]: name for name in names if name.lower() in SPLITS and _folders(self.root / name)}
        self.folders = {split: self.root / name for split, name in found.items()} if "train" in found else {}
        if found and not self.folders:
            raise ValueError(f"{self.root} has {', '.join(found.values())} but no train/ with class folders beside it")
        self.folders = self.folders or {"train": self.root}
        self.class_names = tuple(_folders(self.folders["train"]))
        self._check_classes()
        self._files = {split: self._list(folder) for split, folder in self.folders.items()}

    def _check_classes(self) -> None:
        root = self.folders["train"]
        layout = f"expected {root}/<class>/picture.png with a folder for each of two or more classes"
        if not self.class_names:
            loose = sum(is_image_name(name) for name in os.listdir(root))
            came = f"{loose} pictures and no folder" if loose else "nothing usable (it is empty or holds other files)"
            raise ValueError(f"{layout}, found {came}")
        if len(self.class_names) == 1:
            raise ValueError(f"{layout}, found one class, {self.class_names[0]!r}; a classifier needs at least two")
        for split, folder in self.folders.items():
            if strange := sorted(set(_folders(folder)) - set(self.class_names)):
                raise ValueError(
                    f"{folder} has classes that {root} does not: {_few(strange)}; "
                    f"rename or remove them, or add them to the training split ({split} can only test what was learnt)"
                )

    def _list(self, folder: Path) -> list[list[str]]:
        files = [find_images(folder / name) if (folder / name).is_dir() else [] for name in self.class_names]
        empty = [name for name, paths in zip(self.class_names, files, strict=True) if not paths]
        empty = [name for name in empty if (folder / name).is_dir()]
        if empty:
            raise ValueError(f"{folder}: class folders without a picture: {_few(empty)}; add pictures or remove them")
        return files

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, files in self._files.items():
            paths = [path for group in files for path in group]
            targets = np.repeat(np.arange(len(files)), [len(group) for group in files]).astype(np.int64)
            splits[split] = FileImages(paths, targets)
        return splits

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for files in self._files.values():
            for path in (path for group in files for path in group):
                relative = os.path.relpath(path, self.root).replace(os.sep, "/")
                digest.update(f"{relative}\0{os.path.getsize(path)}\n".encode())
        return digest.hexdigest()[:16]


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
    from acmix_zoo.data.hub import HubSource, is_table
    from acmix_zoo.data.recorded import given_source
    from acmix_zoo.data.shipped import SHIPPED

    if (given := given_source()) is not None:
        return given
    text = str(source)
    if text in SHIPPED:
        return SHIPPED[text]()
    path = Path(text).expanduser()
    if text and is_table(path):
        return HubSource(text, label_column)
    if text and path.is_dir():
        return FolderSource(path)
    if path.is_file():
        raise ValueError(f"source {text} is a file; expected a folder of class folders, or a parquet file")
    if not text or text[0] in "./~" or text.endswith("/") or text.count("/") > 1 or "\\" in text:
        known = ", ".join(SHIPPED)
        raise FileNotFoundError(f"source {text!r} does not exist; expected a folder, a data set id, or one of {known}")
    return HubSource(text, label_column)


def _folders(root: Path) -> list[str]:
    return sorted(entry.name for entry in os.scandir(root) if entry.is_dir() and not entry.name.startswith("."))


def _few(names: Sequence[str], most: int = 5) -> str:
    return ", ".join(names[:most]) + (f" and {len(names) - most} more" if len(names) > most else "")
