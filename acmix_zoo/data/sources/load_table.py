"""Load a table with the `datasets` library: parquet or tar files, an imagefolder with metadata, or a Hub data set."""

from __future__ import annotations

import glob
import os
import tarfile
from pathlib import Path
from typing import Any, NamedTuple

from acmix_zoo.data.sources.path_safety import allowed_roots
from acmix_zoo.data.sources.shards import Shards, has_metadata
from acmix_zoo.data.sources.split_names import local_name, match_splits


class Table(NamedTuple):
    """A data set that the `datasets` library has loaded.

    Attributes:
        name: name for messages and records.
        origin: where the data set comes from: "local folder", "local file" or "Hugging Face Hub".
        license: license of the images; "unknown" if the data set does not state one.
        splits: a `datasets.Dataset` or `IterableDataset` for "train", "val" and "test", as far as they exist.
        published_names: the name of each split in the data set, such as "validation".
        features: the columns of the training split and their types, as the `datasets` library describes them.
        shards: the shards at the path, if there are any.
        roots: the folders, or the URL, below which files named by path must be.
    """

    name: str
    origin: str
    license: str
    splits: dict[str, Any]
    published_names: dict[str, str]
    features: Any
    shards: Shards
    roots: tuple[str, ...]


def is_table(path: Path) -> bool:
    """Return whether a path is a table: shards, or an imagefolder with metadata."""
    return bool(Shards(path).kind) or (path.is_dir() and has_metadata(path))


def load_table(source: str, streaming: bool = False) -> Table:
    """Load a table from this machine or from the Hub.

    Args:
        source: a path or an id on the Hub.
        streaming: return splits that are read shard by shard.

    Raises:
        FileNotFoundError: there is no such data set on this machine or on the Hub.
        ValueError: there is no training split, two splits mean the same one, or the files are damaged or of another
            format.
    """
    path = Path(source).expanduser()
    shards = Shards(path)
    tables = _load_splits(source, shards, streaming)
    published_names = match_splits(tables, source)
    if "train" not in published_names:
        raise ValueError(f"{source} has no split named train, only {', '.join(tables)}. Rename the training split")
    splits = {split: tables[name] for split, name in published_names.items()}
    return Table(
        name=local_name(path) if path.exists() else source,
        origin=("local folder" if path.is_dir() else "local file") if path.exists() else "Hugging Face Hub",
        license=str(splits["train"].info.license or "unknown"),
        splits=splits,
        published_names=published_names,
        features=splits["train"].features or {},
        shards=shards,
        roots=allowed_roots(source, streaming),
    )


def _load_splits(source: str, shards: Shards, streaming: bool) -> dict[str, Any]:
    """Return the splits of a data set as `datasets` names them."""
    import datasets

    if not shards.kind and shards.path.is_dir():  # `datasets` would merge val/ and validation/
        match_splits((entry.name for entry in os.scandir(shards.path) if entry.is_dir()), source)
    try:
        if shards.kind:
            # `datasets` reads paths as patterns, in which brackets have a meaning
            files = {split: [glob.escape(file) for file in found] for split, found in shards.files.items()}
            return dict(datasets.load_dataset(shards.kind, data_files=files, streaming=streaming))
        if shards.path.exists():
            return dict(
                datasets.load_dataset("imagefolder", data_dir=glob.escape(str(shards.path)), streaming=streaming)
            )
        return dict(datasets.load_dataset(source, streaming=streaming))
    except (FileNotFoundError, ConnectionError) as error:
        reason = str(error).splitlines()[0]
        offline = " (HF_HUB_OFFLINE is set, so only the cache was searched)" if os.environ.get("HF_HUB_OFFLINE") else ""
        raise FileNotFoundError(
            f"could not load the source {source!r}{offline}: {reason}. Expected a folder on this machine (looked for "
            f"{os.path.abspath(shards.path)}), a shipped name (fashion_mnist, digits), or the id of a Hub data set"
        ) from error
    except (ValueError, tarfile.TarError, datasets.exceptions.DatasetsError) as error:  # also pyarrow's errors
        cause = _root_cause(error)
        if isinstance(cause, OSError) and cause.errno is not None:  # such as a full disk
            raise cause from None  # `from error` would make a circle of causes
        raise ValueError(f"{source} {_problem(cause, shards)}") from error


def _root_cause(error: BaseException) -> BaseException:
    while error.__cause__ is not None:  # "An error occurred while generating the dataset"
        error = error.__cause__
    return error


def _problem(error: BaseException, shards: Shards) -> str:
    """Return what is wrong with the files of a table, what was expected and what to do."""
    reason = " ".join(str(error).split())[:300]
    if "different features" in reason:
        return (
            f"has metadata files with columns of different types, such as numbers in one, and text or missing values "
            f"in another ({reason}). Expected the same types in all. Fill in missing values, and write class names "
            "that are not numbers, such as class1"
        )
    if shards.kind:
        expected = {
            "parquet": "complete parquet files with the same columns, of the same types. Repair or remove the others",
            "webdataset": "complete tar files in the format of WebDataset: images, and integers in files NAME.cls. "
            "Write the archives again, with the names of the classes in a classes.txt next to them",
        }[shards.kind]
    elif shards.path.exists():
        expected = (
            "a metadata file with a column file_name, and commas between the columns of a CSV file. Correct "
            "the metadata file"
        )
    else:
        expected = "a data set of images that the datasets library reads without further options. Choose another one"
    return f"cannot be read: {reason}. Expected {expected}"
