"""The names of splits, such as the words that mean "validation", lists of their images, and names of local data."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence, Set
from pathlib import Path

from acmix_zoo.data.formats import is_image_name
from acmix_zoo.data.sources.installed_sources import SHIPPED
from acmix_zoo.data.text_files import read_text
from acmix_zoo.data.wording import first_few

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test",
}  # fmt: skip
"""Names of folders, files and table splits, and the split that each stands for. As in the `datasets` library."""


def match_splits(names: Iterable[str], data_name: str) -> dict[str, str]:
    """Map "train", "val" and "test" to the names that stand for them, such as "training". Other names are left out.

    Args:
        names: names of splits, in any case.
        data_name: name of the data set for the error message.

    Raises:
        ValueError: two names mean the same split.
    """
    found: dict[str, str] = {}
    for name in names:
        split = SPLIT_NAMES.get(name.lower())
        if split in found:
            raise ValueError(
                f"{data_name} has both {found[split]} and {name}, which mean the same split. Expected one of them. "
                "Merge them or remove one"
            )
        if split:
            found[split] = name
    return found


def read_split_lists(folder: Path) -> dict[str, list[str]]:
    """Return the lines of the files that list the images of each split, as in ImageSets/ of Pascal VOC.

    Without a train.txt, trainval.txt is used, without the lines of val.txt.

    Args:
        folder: the folder of the lists. It need not exist.

    Returns:
        The lines for "train", "val" and "test", as far as there is a list; {} without any list.

    Raises:
        ValueError: there are lists, but none of training images.
    """
    files = {path.stem: path for path in sorted(folder.glob("*.txt"))}
    found = match_splits(files, str(folder))
    if "train" not in found and "trainval" in files:
        found["train"] = "trainval"
    if files and "train" not in found:
        raise ValueError(
            f"{folder} has no train.txt or trainval.txt, only {first_few(list(files))}. Expected a list of the "
            "training images"
        )
    stripped = {split: map(str.strip, read_text(files[name]).splitlines()) for split, name in found.items()}
    lines = {split: [line for line in each if line] for split, each in stripped.items()}
    if found.get("train") == "trainval":
        validation = {name for line in lines.get("val", []) for name in _readings(line)}
        lines["train"] = [line for line in lines["train"] if validation.isdisjoint(_readings(line))]
    return lines


def listed_names(lines: Sequence[str], existing: Collection[str], split: str, lists: Path, images: str) -> list[str]:
    """Return the names of the images in a list, each once. In some lists, extensions or a flag -1, 0 or 1 follow them.

    Args:
        lines: the lines of the list of a split.
        existing: the names of all images, without extensions.
        split: "train", "val" or "test".
        lists: the folder of the lists, for the message.
        images: what to call the folder of the images in the message.

    Raises:
        ValueError: this is the list of training images, and none of them exists.
    """
    known = set(existing)
    names = list(dict.fromkeys(_listed_name(line, known) for line in lines))
    if split == "train" and known.isdisjoint(names):
        listed, present = (first_few(each, 3) or "nothing" for each in (lines, sorted(known)))
        raise ValueError(
            f"no line of the list of training images in {lists} is the name of an image in {images}. The list starts "
            f"with {listed}, and {images} with {present}. Expected one name per line, as in {images}"
        )
    return names


def _listed_name(line: str, known: Set[str]) -> str:
    """Return the name in a line of a list if any part of the line is known, or else the line."""
    return next((name for name in _readings(line) if name in known), line)


def _readings(line: str) -> list[str]:
    """Return the names that a line of a list may mean: with and without a flag and an extension."""
    without_flag = re.sub(r"\s+(-1|0|1)$", "", line)
    return [
        reading
        for name in (line, without_flag)
        for reading in (name, name.rpartition(".")[0] if is_image_name(name) else name)
    ]


def local_name(path: Path) -> str:
    """Return the name of a data set on this machine: the last part of its path.

    If that is the name of a shipped data set, such as "fashion_mnist", "_folder" is appended. The bare name in a record
    or tag always means the shipped images.
    """
    name = path.expanduser().resolve().name
    return f"{name}_folder" if name.lower().replace("-", "_") in SHIPPED else name
