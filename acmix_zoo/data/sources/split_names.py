"""The names of splits, such as the words that mean "validation", and the name of a local data set."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from acmix_zoo.data.sources.installed_sources import SHIPPED

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


def local_name(path: Path) -> str:
    """Return the name of a data set on this machine: the last part of its path.

    If that is the name of a shipped data set, such as "fashion_mnist", "_folder" is appended. The bare name in a record
    or tag always means the shipped images.
    """
    name = path.expanduser().resolve().name
    return f"{name}_folder" if name.lower().replace("-", "_") in SHIPPED else name
