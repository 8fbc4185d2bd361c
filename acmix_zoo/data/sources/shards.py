"""Shards of a data set on disk: which files there are, of which split, and what they tell before a picture is read.

Parquet files with an image column, or tar files in WebDataset's form: NAME.jpg beside NAME.cls, a whole number.
"""

from __future__ import annotations

import hashlib
import json
import re
import tarfile
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from typing import Any

from acmix_zoo.data.sources.base import SPLITS

KINDS = {".parquet": "parquet", ".tar": "webdataset"}


class Shards:
    """The shards that `path` names: one file, or those in a folder, in its data/ or in folders named as splits.

    The split of a file is its folder's name, or the first word of its own that is one: train-00000-of-00002.parquet,
    imagenet1k-validation-00.tar; other files are training data, and so is a file given by itself.

    Attributes:
        kind: "parquet" or "webdataset", as `datasets.load_dataset` calls them; None when there are no shards.
        files: for each split of "train", "val" and "test" its files, sorted.

    Raises:
        ValueError: a split has files in two folders or under two names, such as val/ and validation/.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.kind: str | None = None
        self.files: dict[str, list[str]] = {}
        self._rows: dict[str, list[int]] = {}  # of each row group of a file
        self._walked: dict[str, tuple[int, set[int]]] = {}
        if path.is_file():
            self.kind = KINDS.get(path.suffix)
            self.files = {"train": [str(path)]} if self.kind else {}
        elif path.is_dir():
            named = (place for place in sorted(path.iterdir()) if place.name.lower() in SPLITS and place.is_dir())
            places = [path, path / "data", *named]
            for suffix, kind in KINDS.items():
                found = sorted(file for place in places for file in place.glob(f"*{suffix}"))
                first: dict[str, tuple[Path, str]] = {}
                for file in found:
                    word = self._split_word(file)
                    split = SPLITS[word]
                    other, spelling = first.setdefault(split, (file, word))
                    if other.parent != file.parent or spelling != word:
                        raise ValueError(
                            f"{path} has both {other.relative_to(path)} and {file.relative_to(path)}, which belong to "
                            f"the same split, {split}. Expected the files of a split in one folder and with one name "
                            "for it; merge them or remove one"
                        )
                    self.files.setdefault(split, []).append(str(file))
                if found:
                    self.kind = kind
                    break

    def size(self, split: str, label: str) -> int:
        """How many images a split has: from the parquet files' footers; from the _info.json that timm publishes
        beside tar files; else by a walk over the tar files' headers."""
        if self.kind == "parquet":
            return sum(rows for file in self.files[split] for rows in self._row_groups(file))
        sizes: dict[str, int] = {}
        for entry in self._info.get("splits", {}).values():
            sizes |= dict(zip(entry.get("filenames", ()), entry.get("shard_lengths", ()), strict=False))
        names = [Path(file).name for file in self.files[split]]
        if all(name in sizes for name in names):
            return sum(sizes[name] for name in names)
        return sum(self._walk(file, label)[0] for file in self.files[split])

    def labels(self, split: str, label: str) -> set[Any]:
        """The different values of the class column."""
        if self.kind == "parquet":
            from pyarrow import parquet

            columns = (parquet.read_table(file, columns=[label])[label] for file in self.files[split])
            return {value for column in columns for value in column.unique().to_pylist()}
        return set().union(*(self._walk(file, label)[1] for file in self.files[split]))

    def class_names(self) -> tuple[str, ...] | None:
        """The lines of a classes.txt beside the shards; None if there is none."""
        if not self.kind:
            return None
        folder = self.path if self.path.is_dir() else self.path.parent
        return read_classes(folder / "classes.txt") if (folder / "classes.txt").is_file() else None

    def pieces(self, split: str) -> list[tuple[str, int]]:
        """The files of a split, each with the number of row groups that can be read by themselves: 1 for a tar file."""
        groups = self.kind == "parquet"
        return [(Path(file).name, len(self._row_groups(file)) if groups else 1) for file in self.files[split]]

    def marks(self) -> Iterable[str]:
        """Name, size and a hash of both ends of every file, for a fingerprint; the size of a tar file is rounded."""
        for split, files in self.files.items():
            for file in map(Path, files):
                with file.open("rb") as content:
                    digest = hashlib.sha256(content.read(2**16))
                    content.seek(max(0, file.stat().st_size - 2**16))
                    digest.update(content.read())
                yield f"{split}\0{file.name}\0{file.stat().st_size}\0{digest.hexdigest()}"

    def _split_word(self, file: Path) -> str:
        """Return the word in a file's folder or name that stands for its split; "train" if there is none."""
        words = re.split(r"[-_.]+", file.stem.lower())
        if file.parent != self.path:
            words = [file.parent.name.lower(), *words]
        return next((word for word in words if word in SPLITS), "train")

    def _row_groups(self, file: str) -> list[int]:
        from pyarrow import parquet

        if file not in self._rows:
            footer = parquet.read_metadata(file)
            self._rows[file] = [footer.row_group(n).num_rows for n in range(footer.num_row_groups)]
        return self._rows[file]

    @cached_property
    def _info(self) -> dict[str, Any]:
        file = self.path / "_info.json"
        info = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
        return info if isinstance(info, dict) else {}

    def _walk(self, file: str, label: str) -> tuple[int, set[int]]:
        # pictures are leapt over; a walk takes some 20 µs a member
        if file not in self._walked:
            self._walked[file] = _walk_tar(file, label)
        return self._walked[file]


def read_classes(file: str | Path) -> tuple[str, ...]:
    """Class names, one a line, the first being class 0.

    Raises:
        FileNotFoundError: no such file. ValueError: fewer than two names.
    """
    names = tuple(
        line.strip() for line in Path(file).expanduser().read_text(encoding="utf-8-sig").splitlines() if line.strip()
    )
    if len(names) < 2:
        raise ValueError(f"{file}: expected two or more class names, one a line, found {len(names)}")
    return names


def _walk_tar(file: str, label: str) -> tuple[int, set[int]]:
    count, last, labels = 0, None, set()
    try:
        with tarfile.open(file, "r:") as tar:
            for member in tar:
                tar.members = []  # type: ignore[attr-defined]  # tarfile would remember all of them
                key, dot, field = member.name.rpartition("/")[2].partition(".")
                if not member.isfile() or not (key and dot):
                    continue
                key = member.name[: len(member.name) - len(field) - 1]
                count, last = count + (key != last), key
                if field == label and (content := tar.extractfile(member)):
                    labels.add(int(content.read()))
    except (tarfile.TarError, ValueError) as error:
        raise ValueError(f"{file} cannot be read: {error}; expected pictures and .{label} files in it") from error
    return count, labels
