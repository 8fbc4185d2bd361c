"""Find images that are in two splits at once, so that a score that cannot be trusted does not go unnoticed."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import numpy as np

from acmix_zoo.data.sources.base import CHECK_LIMIT, FileImages, Images

READ_BYTES = 2**30  # of files that are hashed; about a second of work if they are in memory, ten if on a disk
_TAIL = 4096


@dataclass(frozen=True)
class _File:
    split: str
    path: str
    size: int


def shared_images(parts: Mapping[str, tuple[Images, np.ndarray]]) -> list[str]:
    """Return a line for val and one for test if they have images that were seen before, whatever their file names.

    A test image may not be in val, either, because the best epoch is chosen there.

    Only images in files are compared, and only up to `CHECK_LIMIT` of them. Files of equal size in different splits are
    candidates. Their last bytes are compared first, and those that still agree are hashed, up to `READ_BYTES`. A line
    says so if a limit was reached.

    Args:
        parts: the images of each split, and the indices of those that belong to it.
    """
    paths = {
        split: [images.paths[i] for i in indices]
        for split, (images, indices) in parts.items()
        if isinstance(images, FileImages)
    }
    if len(paths) < 2:
        return []
    if sum(map(len, paths.values())) > CHECK_LIMIT:
        return [f"identical images in two splits were not looked for: there are more than {CHECK_LIMIT:,} images"]
    files = [file for split in paths for file in _files_of(split, paths[split])]
    groups = _refine(_group([files], [file.size for file in files]), _tail)
    to_read = np.cumsum([sum(file.size for file in group) for group in groups])
    within = int(np.searchsorted(to_read, READ_BYTES, side="right"))
    is_complete = within == len(groups)
    groups = _refine(groups[:within], _digest)
    lines = []
    for split, what, seen in (("val", "validation", {"train"}), ("test", "test", {"train", "val"})):
        shared = [group for group in groups if split in _splits(group) and _splits(group) & seen]
        if not shared:
            continue
        count = sum(file.split == split for group in shared for file in group)
        others = " and ".join(sorted(set().union(*map(_splits, shared)) & seen))
        one = min(file.path for file in shared[0] if file.split == split)
        two = min(file.path for file in shared[0] if file.split in seen)
        root = os.path.commonpath([one, two])
        lines.append(
            f"Warning: {'' if is_complete else 'at least '}{count:,} of the {len(paths[split]):,} {split} images are "
            f"identical to images of {others} (for example {os.path.relpath(one, root)} and "
            f"{os.path.relpath(two, root)}), so the {what} score will be too high"
        )
    if not is_complete:
        lines.append(
            "the search for identical images in two splits is incomplete, because more than "
            f"{READ_BYTES / 2**30:.0f} GiB would have to be read"
        )
    return lines


def _files_of(split: str, paths: Iterable[str]) -> list[_File]:
    found = []
    for path in paths:
        try:
            size = os.path.getsize(path)
        except OSError:  # a broken link, which the check of the images reports
            continue
        if size:
            found.append(_File(split, path, size))
    return found


def _refine(groups: list[list[_File]], key: Callable[[_File], bytes | None]) -> list[list[_File]]:
    """Compare the files of each group by a key that is read from them; files without a key are left out."""
    with ThreadPoolExecutor(max_workers=8) as pool:  # reading and hashing release the GIL
        return _group(groups, pool.map(key, [file for group in groups for file in group]))


def _group(groups: list[list[_File]], keys: Iterable[Any]) -> list[list[_File]]:
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
        return b""  # all of it has been compared
    try:
        with open(file.path, "rb") as content:
            return hashlib.file_digest(content, "sha256").digest()
    except OSError:
        return None
