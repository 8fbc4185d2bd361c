"""`open_source`: find out which kind of data set a name or path refers to, and open it."""

from __future__ import annotations

import difflib
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.folder_source import FolderSource
from acmix_zoo.data.sources.installed_sources import SHIPPED, open_shipped
from acmix_zoo.data.sources.load_table import is_table
from acmix_zoo.data.sources.recorded import current_recorded_source
from acmix_zoo.data.sources.table import TableSource


class SourceKind(NamedTuple):
    """A kind of data source.

    Attributes:
        description: what the kind is, as listed in error messages.
        matches: whether a name means a source of this kind.
        create: opens the source, given its name and the column with the class.
    """

    description: str
    matches: Callable[[str], bool]
    create: Callable[[str, str | None], IndexedSource]


# The first kind that matches is opened.
_KINDS = (
    SourceKind(f"one of {', '.join(SHIPPED)}", lambda name: name in SHIPPED, lambda name, _: open_shipped(name)),
    SourceKind("a parquet or tar file, or a folder of such files", lambda name: is_table(_path(name)), TableSource),
    SourceKind("a folder of class folders", lambda name: _path(name).is_dir(), lambda name, _: FolderSource(name)),
    SourceKind("the id of a Hub data set (org/name)", lambda name: is_hub_id(name), TableSource),
)


def open_source(source: str | Path, label_column: str | None = None) -> IndexedSource:
    """Open a data set.

    Args:
        source: a shipped name ("fashion_mnist", "digits"); a folder of class folders; a parquet or tar file, a folder
            of such files, or an imagefolder with a metadata file; or the id of a data set for `datasets.load_dataset`.
        label_column: the column with the class, for tables with more than one candidate.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: `source` exists but is not a classification data set.
    """
    recorded = current_recorded_source()
    if recorded is not None:
        return recorded
    name = str(source)
    for kind in _KINDS:
        if name and kind.matches(name):
            return kind.create(name, label_column)
    raise source_not_found(name)


def is_hub_id(name: str) -> bool:
    """Return whether a name could be the id of a data set on the Hub.

    Asking the Hub takes up to half a minute. A name that resembles an existing folder is therefore treated as a
    misspelt path, even if it has the form of an id.
    """
    looks_like_id = name.count("/") == 1 and name[0] not in "./~" and not name.endswith("/") and "\\" not in name
    return looks_like_id and not _path(name).exists() and not _similar_folders(name)


def source_not_found(name: str, kinds: str | None = None) -> FileNotFoundError | ValueError:
    """Return the error for a name that no kind of source matches.

    Args:
        name: the name.
        kinds: descriptions of what was expected; by default, the kinds of image classification data.
    """
    path = _path(name)
    kinds = kinds or "; ".join(kind.description for kind in _KINDS)
    if not name:
        return FileNotFoundError(
            f"the name of the data set is empty. Expected {kinds}. Set the location with --data.source"
        )
    if path.is_file():
        return ValueError(f"source {name} is a file of an unknown kind. Expected {kinds}")
    similar = [*_similar_folders(name), *difflib.get_close_matches(name, SHIPPED, n=1)]
    expected = f"Expected {kinds}. Looked for {os.path.abspath(path)}"
    if similar:
        return FileNotFoundError(f"data set {name!r} does not exist. Did you mean {' or '.join(similar)}? {expected}")
    return FileNotFoundError(f"data set {name!r} does not exist. {expected}. Set the location with --data.source")


def _similar_folders(name: str) -> list[str]:
    """Return the paths of up to three folders whose names resemble a path that does not exist."""
    path = _path(name)
    if not path.parent.is_dir():
        return []
    neighbours = [entry.name for entry in os.scandir(path.parent) if entry.is_dir()]
    return [str(path.parent / close) for close in difflib.get_close_matches(path.name, neighbours, n=3)]


def _path(name: str) -> Path:
    return Path(name).expanduser()
