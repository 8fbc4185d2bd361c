"""`Shards`: the parquet or tar files of a data set on disk, and what is known about them before any image is read.

Parquet files have a column of images. Tar files are in the format of WebDataset: NAME.jpg and NAME.cls, an integer.
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import tarfile
from collections import Counter
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from acmix_zoo.data.formats import is_hidden, is_image_name
from acmix_zoo.data.sources.split_names import SPLIT_NAMES
from acmix_zoo.data.text_files import read_text
from acmix_zoo.data.wording import first_few

SHARD_KINDS = {".parquet": "parquet", ".tar": "webdataset"}
"""The kind of shards by their extension, as `datasets.load_dataset` calls it."""
METADATA_FILES = ("metadata.csv", "metadata.jsonl", "metadata.parquet")
"""Files that list the images of an imagefolder with their classes. They are not shards."""
_FILE_NAME = r"(\w+_)?file_names?"  # a column of file names, as `datasets` recognises it


class ShardFile(NamedTuple):
    """A file of a split.

    Attributes:
        name: file name.
        groups: number of parts that can be read independently: row groups of a parquet file, 1 for a tar file.
    """

    name: str
    groups: int


class _TarContents(NamedTuple):
    """Contents of a tar file.

    Attributes:
        images: number of images.
        labels: the classes that occur.
    """

    images: int
    labels: set[int]


class Shards:
    """The shards at `path`: one file, or those in a folder, in its data/ or in folders named like splits.

    The split of a file is given by its folder, or by the first word of its name that means a split:
    train-00000-of-00002.parquet, imagenet1k-validation-00.tar. Other files are training data, and so is a single file.
    A folder of class folders has no shards, even if there are tables or archives next to the classes.

    Attributes:
        kind: "parquet" or "webdataset", as `datasets.load_dataset` calls them; None if there are no shards.
        files: the sorted files of each split that exists, out of "train", "val" and "test".

    Raises:
        ValueError: a split has files in two folders or under two names, such as val/ and validation/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind: str | None = None
        self.files: dict[str, list[str]] = {}
        self._row_counts: dict[str, list[int]] = {}  # number of rows in each row group of a file
        self._tar_contents: dict[str, _TarContents] = {}
        if path.is_file():
            self.kind = SHARD_KINDS.get(path.suffix)
            self.files = {"train": [str(path)]} if self.kind else {}
        elif path.is_dir():
            self._find_files()

    def _find_files(self) -> None:
        named = [folder for folder in sorted(self.path.iterdir()) if folder.name.lower() in SPLIT_NAMES]
        folders = [self.path, self.path / "data", *(folder for folder in named if folder.is_dir())]
        for suffix, kind in SHARD_KINDS.items():
            found = sorted(file for folder in folders for file in folder.glob(f"*{suffix}"))
            found = [f for f in found if f.is_file() and f.name not in METADATA_FILES and not is_hidden(f.name)]
            if found and not has_class_folders(self.path):
                self.kind = kind
                self._assign_splits(found)
                return

    def _assign_splits(self, files: list[Path]) -> None:
        first: dict[str, tuple[Path, str]] = {}  # the first file of each split, and the word that stands for the split
        for file in files:
            word = self._split_word(file)
            split = SPLIT_NAMES[word]
            other, other_word = first.setdefault(split, (file, word))
            if other.parent != file.parent or other_word != word:
                raise ValueError(
                    f"{self.path} has both {other.relative_to(self.path)} and {file.relative_to(self.path)}, which "
                    f"belong to the same split, {split}. Expected the files of a split in one folder and with one name "
                    "for it; merge them or remove one"
                )
            self.files.setdefault(split, []).append(str(file))

    def _split_word(self, file: Path) -> str:
        """Return the word in a file's folder or name that stands for its split; "train" if there is none."""
        words = re.split(r"[-_.]+", file.stem.lower())
        if file.parent != self.path:
            words = [file.parent.name.lower(), *words]
        return next((word for word in words if word in SPLIT_NAMES), "train")

    def size(self, split: str, label: str) -> int:
        """Return the number of images of a split.

        It is read from the footers of parquet files. For tar files it is taken from the _info.json that timm publishes
        with them; without this file, the headers of all members are read.

        Args:
            label: the column or extension of the class.
        """
        if self.kind == "parquet":
            return sum(rows for file in self.files[split] for rows in self._rows_per_group(file))
        sizes: dict[str, int] = {}
        for entry in self._info.get("splits", {}).values():
            sizes |= dict(zip(entry.get("filenames", ()), entry.get("shard_lengths", ()), strict=False))
        names = [Path(file).name for file in self.files[split]]
        if all(name in sizes for name in names):
            return sum(sizes[name] for name in names)
        return sum(self._contents(file, label).images for file in self.files[split])

    def labels(self, split: str, label: str) -> set[Any]:
        """Return the different values of the class column."""
        if self.kind == "parquet":
            from pyarrow import parquet

            columns = (parquet.read_table(file, columns=[label])[label] for file in self.files[split])
            return {value for column in columns for value in column.unique().to_pylist()}
        return set().union(*(self._contents(file, label).labels for file in self.files[split]))

    def class_names(self) -> tuple[str, ...] | None:
        """Return the lines of a classes.txt next to the shards; None if there is no such file."""
        if not self.kind:
            return None
        folder = self.path if self.path.is_dir() else self.path.parent
        return read_class_names(folder / "classes.txt") if (folder / "classes.txt").is_file() else None

    def split_files(self, split: str) -> list[ShardFile]:
        """Return the files of a split."""
        is_parquet = self.kind == "parquet"
        return [
            ShardFile(Path(file).name, len(self._rows_per_group(file)) if is_parquet else 1)
            for file in self.files[split]
        ]

    def fingerprints(self) -> Iterable[str]:
        """Yield a text for each file that changes if the file does: split, name, size and a hash of both ends."""
        for split, files in self.files.items():
            for file in map(Path, files):
                with file.open("rb") as content:
                    digest = hashlib.sha256(content.read(2**16))
                    content.seek(max(0, file.stat().st_size - 2**16))
                    digest.update(content.read())
                yield f"{split}\0{file.name}\0{file.stat().st_size}\0{digest.hexdigest()}"

    def _rows_per_group(self, file: str) -> list[int]:
        from pyarrow import parquet

        if file not in self._row_counts:
            footer = parquet.read_metadata(file)
            self._row_counts[file] = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        return self._row_counts[file]

    @cached_property
    def _info(self) -> dict[str, Any]:
        file = self.path / "_info.json"
        info = json.loads(read_text(file)) if file.is_file() else {}
        return info if isinstance(info, dict) else {}

    def _contents(self, file: str, label: str) -> _TarContents:
        if file not in self._tar_contents:
            self._tar_contents[file] = _read_tar(file, label)
        return self._tar_contents[file]


def has_class_folders(path: Path) -> bool:
    """Return whether a folder, or one of its split folders, has two or more subfolders with images directly inside.

    Folders named like a split or "data" do not count as class folders.
    """
    subfolders = _subfolders(path)
    splits = [folder for folder in subfolders if folder.name.lower() in SPLIT_NAMES]
    others = [folder for folder in subfolders if folder not in splits and folder.name != "data"]
    return any(sum(map(_has_image, classes)) >= 2 for classes in (others, *map(_subfolders, splits)))


def metadata_files(path: Path) -> list[Path]:
    """Return the metadata files in a folder and in its subfolders."""
    return [file for name in METADATA_FILES for depth in ("", "*/") for file in path.glob(depth + name)]


def has_metadata(path: Path) -> bool:
    """Return whether a folder is an imagefolder with metadata: a file that lists its images.

    Next to class folders, only a file with a column of file names counts. Others belong to something else.
    """
    files = metadata_files(path)
    if not files or any(map(_lists_images, files)):
        return bool(files)
    described = {file.parent for file in files}
    others = [f for f in _subfolders(path) if f.name.lower() not in SPLIT_NAMES and f not in described]
    return not has_class_folders(path) and sum(map(_has_image_below, others)) < 2


def _lists_images(file: Path) -> bool:
    """Return whether a metadata file has a column file_name, or another one that `datasets` takes for file names.

    Raises:
        ValueError: it is a damaged parquet file.
    """
    if file.suffix == ".parquet":
        from pyarrow import parquet

        try:
            names = parquet.read_schema(file).names
        except (ValueError, OSError) as error:
            raise ValueError(
                f"{file} cannot be read: {error}. Expected a parquet file. Write it again, or remove it"
            ) from error
        return any(re.fullmatch(_FILE_NAME, name) for name in names)
    first_line = read_text(file).partition("\n")[0]
    return re.search(rf'(^|[,;\t"]){_FILE_NAME}($|[,;\t"])', first_line.strip()) is not None


def _subfolders(path: Path) -> list[Path]:
    return [folder for folder in path.iterdir() if folder.is_dir() and not is_hidden(folder.name)]


def _has_image(folder: Path) -> bool:
    with os.scandir(folder) as entries:
        return any(is_image_name(entry.name) for entry in entries)


def _has_image_below(folder: Path) -> bool:
    return any(is_image_name(name) for _, _, names in os.walk(folder) for name in names)


def read_class_names(file: str | Path) -> tuple[str, ...]:
    """Read class names from a text file with one name per line, starting with class 0.

    Raises:
        FileNotFoundError: the file does not exist.
        ValueError: it has fewer than two names, one of them twice, or is not UTF-8.
    """
    lines = read_text(Path(file).expanduser()).splitlines()
    names = tuple(line.strip() for line in lines if line.strip())
    if len(names) < 2:
        raise ValueError(f"{file} has {len(names)} class names. Expected two or more, one per line")
    if repeated := [name for name, count in Counter(names).items() if count > 1]:
        raise ValueError(f"{file} names {first_few(repeated)} more than once. Expected each class once, in its line")
    return names


def _read_tar(file: str, label: str) -> _TarContents:
    """Count the images of a tar file and collect their classes. Image data is skipped; a member takes some 20 µs."""
    images, last_key, labels = 0, None, set()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would remember all of them
                name, dot, field = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or not (name and dot):
                    continue
                key = member.name[: len(member.name) - len(field) - 1]
                images, last_key = images + (key != last_key), key
                if field == label and (content := tar.extractfile(member)):
                    labels.add(int(content.read()))
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}. Expected images and .{label} files in it") from error
    return _TarContents(images, labels)
