"""Images that a table names by path instead of holding them: they must belong to the data set.

A table comes from somebody else. Without this check, a row could have any file of this machine opened, or any address
fetched, by whoever trains on it.
"""

from __future__ import annotations

import os
from pathlib import Path

_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://")  # as in zip://cat/1.png::hf://datasets/…


def allowed_roots(source: str, streaming: bool = False) -> tuple[str, ...]:
    """Return the folders, or the address, below which the images of a data set may be.

    Args:
        source: a folder or a file, or the id of a data set on the Hub.
        streaming: whether a data set of the Hub is read in passing; else its files are in the Hub's cache.
    """
    path = Path(source).expanduser()
    if path.exists():
        return (str(path if path.is_dir() else path.parent),)
    if streaming:
        return (f"hf://datasets/{source}",)
    import datasets
    from huggingface_hub import constants

    hub = os.path.join(constants.HF_HUB_CACHE, "datasets--" + source.replace("/", "--"))
    return hub, str(datasets.config.DOWNLOADED_DATASETS_PATH)


def checked_path(path: str, roots: tuple[str, ...]) -> str:
    """Return the path to open for an image that a table names; a relative one is taken to be below the first root.

    Links within the data set may lead out of it, as in a class folder: they are its owner's.

    Raises:
        ValueError: the image is not below one of `roots`.
    """
    *archives, place = path.split("::")
    if all(archive.startswith(_ARCHIVES) for archive in archives):
        if "://" in place:
            if ".." not in place.split("/") and any(place.startswith((f"{root}@", f"{root}/")) for root in roots):
                return path
        elif local := [root for root in roots if "://" not in root]:
            full = os.path.abspath(os.path.join(local[0], place))
            if any(_is_below(full, root) for root in local):
                return "::".join([*archives, full])
    raise ValueError(
        f"the table names {path!r} as an image, which is not below {' or '.join(roots)}. Expected images within the "
        "data set; store their bytes in the table, or move the table to a folder above the images"
    )


def _is_below(path: str, root: str) -> bool:
    root = os.path.abspath(root)
    if path.startswith(root.rstrip(os.sep) + os.sep):
        return True
    return os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep)
