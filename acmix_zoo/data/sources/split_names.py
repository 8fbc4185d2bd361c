"""The names of splits, such as the words that mean "validation", lists of their images, and names of local data."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

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
        validation = set(lines.get("val", []))
        lines["train"] = [line for line in lines["train"] if line not in validation]
    return lines


def local_name(path: Path) -> str:
    """Return the name of a data set on this machine: the last part of its path.

    If that is the name of a shipped data set, such as "fashion_mnist", "_folder" is appended. The bare name in a record
    or tag always means the shipped images.
    """
    name = path.expanduser().resolve().name
    return f"{name}_folder" if name.lower().replace("-", "_") in SHIPPED else name
