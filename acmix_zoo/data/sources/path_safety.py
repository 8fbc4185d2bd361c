"""Check that images which a table references by path belong to the data set.

Tables may come from untrusted sources. Without this check, a row could make training open any file on the user's
machine, or fetch any URL.
"""

from __future__ import annotations

import os
from pathlib import Path

_ARCHIVES = ("zip://", "tar://", "gzip://", "bz2://", "xz://", "zstd://")  # as in zip://cat/1.png::hf://datasets/…


def allowed_roots(source: str, streaming: bool = False) -> tuple[str, ...]:
    """Return the folders, or the URL, below which the images of a data set may be located.

    Args:
        source: a folder, a file, or the id of a data set on the Hub.
        streaming: whether a data set is streamed from the Hub. Otherwise its files are in the Hub's cache.
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
    """Return the path to open for an image that a table references. Relative paths are relative to the first root.

    As in class folders, links inside the data set may point outside it, because its owner created them.

    Raises:
        ValueError: the image is not below one of `roots`.
    """
    *archives, location = path.split("::")
    if all(archive.startswith(_ARCHIVES) for archive in archives):
        if "://" in location:
            if ".." not in location.split("/") and any(location.startswith((f"{root}@", f"{root}/")) for root in roots):
                return path
        elif local := [root for root in roots if "://" not in root]:
            full = os.path.abspath(os.path.join(local[0], location))
            if any(_is_below(full, root) for root in local):
                return "::".join([*archives, full])
    raise ValueError(
        f"the table references the image {path!r}, which is not below {' or '.join(roots)}. Expected images within "
        "the data set. Store their bytes in the table, or move the table to a folder above the images"
    )


def _is_below(path: str, root: str) -> bool:
    root = os.path.abspath(root)
    if path.startswith(root.rstrip(os.sep) + os.sep):
        return True
    return os.path.realpath(path).startswith(os.path.realpath(root).rstrip(os.sep) + os.sep)
