"""Find identical images in two splits, which make a score too high."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from acmix_zoo.data.sources.image_sets import CHECK_LIMIT, FileImages
from acmix_zoo.data.splits import Split

READ_LIMIT = 2**30
"""Number of bytes that are hashed at most: about a second of work if they are in memory, ten if they are on a disk."""
_TAIL = 4096  # bytes at the end of a file that are compared first


@dataclass(frozen=True)
class _File:
    split: str
    path: str
    size: int


class _Search(NamedTuple):
    """Result of a search.

    Attributes:
        groups: identical files of several splits.
        is_complete: whether all candidates were compared.
    """

    groups: list[list[_File]]
    is_complete: bool


def duplicate_warnings(splits: Mapping[str, Split]) -> list[str]:
    """Return a warning if val or test have images that are also in an earlier split, whatever their file names.

    A test image must not be in val either, because the best epoch is chosen there. Only images in files are compared,
    and only up to `CHECK_LIMIT` images and `READ_LIMIT` bytes. If a limit is reached, this is stated in a line.
    """
    paths = {
        name: [split.images.paths[i] for i in split.indices]
        for name, split in splits.items()
        if isinstance(split.images, FileImages)
    }
    if len(paths) < 2:
        return []
    if sum(map(len, paths.values())) > CHECK_LIMIT:
        return [f"not checked for identical images in two splits, because there are over {CHECK_LIMIT:,} images"]
    search = _find_duplicates([file for name in paths for file in _files(name, paths[name])])
    lines = []
    for name, score, earlier in (("val", "validation", {"train"}), ("test", "test", {"train", "val"})):
        shared = [group for group in search.groups if name in _splits(group) and _splits(group) & earlier]
        if not shared:
            continue
        count = sum(file.split == name for group in shared for file in group)
        others = " and ".join(sorted(set().union(*map(_splits, shared)) & earlier))
        copies = {file.path for file in shared[0] if file.split == name}
        originals = {file.path for file in shared[0] if file.split in earlier}
        listed_twice = copies & originals
        examples = {min(listed_twice or copies): None, min(listed_twice or originals): None}
        root = os.path.commonpath([os.path.dirname(path) for path in examples])
        names = " and ".join(os.path.relpath(path, root) for path in examples)
        lines.append(
            f"Warning: {'' if search.is_complete else 'at least '}{count:,} of the {len(paths[name]):,} {name} images "
            f"are identical to images of {others} (for example {names}), so the {score} score will be too high"
        )
    if not search.is_complete:
        lines.append(
            "the search for identical images in two splits is incomplete, because it would have to read more than "
            f"{READ_LIMIT / 2**30:.0f} GiB"
        )
    return lines


def _find_duplicates(files: list[_File]) -> _Search:
    """Find identical files of several splits: first by size, then by their last bytes, then by a hash of everything."""
    groups = _compare(_divide([files], [file.size for file in files]), _tail)
    bytes_read = np.cumsum([sum(file.size for file in group) for group in groups])
    within_limit = int(np.searchsorted(bytes_read, READ_LIMIT, side="right"))
    return _Search(_compare(groups[:within_limit], _digest), within_limit == len(groups))


def _files(split: str, paths: Iterable[str]) -> list[_File]:
    found = []
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:  # a broken link, which the check of the images reports
            continue
        if size:
            found.append(_File(split, path, size))
    return found


def _compare(groups: list[list[_File]], key: Callable[[_File], bytes | None]) -> list[list[_File]]:
    """Compare the files of each group by a key that is read from them; files without a key are left out."""
    with ThreadPoolExecutor(max_workers=8) as pool:  # reading and hashing release the GIL
        return _divide(groups, pool.map(key, [file for group in groups for file in group]))


def _divide(groups: list[list[_File]], keys: Iterable[Any]) -> list[list[_File]]:
    """Divide groups by the keys of their files. Return the parts that still have files of several splits."""
    found: dict[Any, list[_File]] = defaultdict(list)
    numbered = [(number, file) for number, group in enumerate(groups) for file in group]
    for (number, file), key in zip(numbered, keys, strict=True):
        if key is not None:
            found[number, key].append(file)
    return [files for files in found.values() if len(_splits(files)) > 1]


def _splits(group: Iterable[_File]) -> set[str]:
    return {file.split for file in group}


def _tail(file: _File) -> bytes | None:
    try:
        with open(file.path, "rb") as content:
            content.seek(max(0, file.size - _TAIL))
            return content.read(_TAIL)
    except OSError:
        return None


def _digest(file: _File) -> bytes | None:
    if file.size <= _TAIL:
        return b""  # the whole file has been compared already
    try:
        with open(file.path, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError:
        return None
