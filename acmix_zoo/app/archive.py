"""Check and unpack a zip archive of class folders that a visitor of the page uploads.

The archive may come from anyone, so it is not trusted: its names must not lead outside the folder, its images must not
unpack to more than a limit, and nothing but images is unpacked.
"""

from __future__ import annotations

import lzma
import re
import stat
import zipfile
import zlib
from collections import Counter
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import NamedTuple

from acmix_zoo.data.formats import is_hidden, is_image_name
from acmix_zoo.data.sources.folder_source import FolderSource

MAX_IMAGES = 5_000
MAX_BYTES = 400_000_000
"""Limits of what an archive may unpack to."""
_MAX_ENTRIES = 4 * MAX_IMAGES
_DAMAGE = (zlib.error, lzma.LZMAError)  # bz2 raises OSError
_EXPECTED = "Expected a zip archive with a folder of images for each class, such as cat/1.jpg and dog/1.jpg"


class UnusableArchive(ValueError):
    """An archive cannot be used. The message says why, and what to do."""


class PhotoArchive(NamedTuple):
    """A zip archive of class folders, in memory.

    Attributes:
        name: the name of the file without its extension, safe as the name of a folder.
        content: the bytes of the file.
        summary: a sentence about its classes and images.
        train_images: number of images that are not in a folder for validation or test.
    """

    name: str
    content: bytes
    summary: str
    train_images: int


def read_archive(content: bytes, file_name: str) -> PhotoArchive:
    """Check an uploaded archive. Its images are unpacked to a temporary folder, and deleted again.

    Args:
        content: the bytes of the file.
        file_name: the name that the visitor's browser states.

    Raises:
        UnusableArchive: it is not a zip archive of class folders, or it is unsafe or too large.
    """
    name = re.sub(r"[^\w-]+", "_", Path(file_name).stem).strip("_")[:40] or "photos"
    with TemporaryDirectory() as folder:
        root = Path(folder) / name
        unpack(content, root)
        try:
            source = FolderSource(root)
            targets = source.splits["train"].targets
        except ValueError as error:
            raise UnusableArchive(f"{str(error).replace(str(root), name)}. {_EXPECTED}") from error
    counts = Counter(source.class_names[i] for i in targets.tolist())
    listed = [f"{label} {count:,}" for label, count in counts.most_common(10)] + ["…"] * (len(counts) > 10)
    summary = f"{name}: {len(targets):,} training images of {len(counts)} classes ({', '.join(listed)})."
    return PhotoArchive(name, content, summary, len(targets))


def unpack(content: bytes, folder: Path) -> None:
    """Unpack the images of an archive into a folder, which is created. Folders around the class folders are left out.

    Raises:
        UnusableArchive: it is not a zip archive, it contains no images, or it is unsafe or too large.
    """
    # Python reads the list of all entries before the first can be looked at. Each of them starts with these bytes.
    if content.count(b"PK\x01\x02") > _MAX_ENTRIES:
        raise UnusableArchive(f"The archive lists more than {_MAX_ENTRIES:,} files. {_EXPECTED}. Upload fewer files")
    try:
        with _open(content) as archive:
            images = _checked_images(archive.infolist())
            for info, parts in zip(images, _without_outer_folders(images), strict=True):
                path = folder.joinpath(*parts)
                path.parent.mkdir(parents=True, exist_ok=True)
                path.write_bytes(archive.read(info))  # at most info.file_size bytes, whatever is compressed in there
    except UnusableArchive:
        raise
    except (zipfile.BadZipFile, NotImplementedError, EOFError, OSError, ValueError, *_DAMAGE) as error:
        raise UnusableArchive(f"The file cannot be unpacked ({error}). {_EXPECTED}. Create it again") from error


def _open(content: bytes) -> zipfile.ZipFile:
    """Open an archive. Names that do not state their encoding are UTF-8, as some programs write them, or else cp437."""
    try:
        return zipfile.ZipFile(BytesIO(content), metadata_encoding="utf-8")
    except UnicodeDecodeError:
        return zipfile.ZipFile(BytesIO(content))


def _checked_images(entries: Sequence[zipfile.ZipInfo]) -> list[zipfile.ZipInfo]:
    """Return the entries that are images, after checking all entries."""
    for info in entries:
        is_link = stat.S_ISLNK(info.external_attr >> 16)
        if is_link or _leads_outside(info.filename):
            problem = "is a link" if is_link else "lies outside of its folder"
            raise UnusableArchive(
                f"The archive contains {info.filename[:80]!r}, which {problem}. Expected only files and folders. "
                "Create the archive from a folder of photos"
            )
    images = [info for info in entries if not info.is_dir() and _is_visible_image(info.filename)]
    if not images:
        raise UnusableArchive(f"The archive contains no images. {_EXPECTED}. Choose another file")
    if any(info.flag_bits & 1 for info in images):
        raise UnusableArchive("The archive is encrypted. Expected one without a password. Create it without a password")
    total = sum(info.file_size for info in images)
    if len(images) > MAX_IMAGES or total > MAX_BYTES:
        raise UnusableArchive(
            f"The archive unpacks to {len(images):,} images of {total / 1e6:,.0f} MB. Expected at most {MAX_IMAGES:,} "
            f"images of {MAX_BYTES / 1e6:,.0f} MB together. Choose fewer images, or make them smaller"
        )
    return images


def _leads_outside(name: str) -> bool:
    """Return whether a name could be a place outside the folder on any operating system."""
    return name.startswith("/") or "\\" in name or ":" in name.split("/")[0] or ".." in name.split("/")


def _is_visible_image(name: str) -> bool:
    """Return whether an entry is an image, and neither hidden nor in a hidden folder such as __MACOSX."""
    parts = _parts(name)
    return bool(parts) and is_image_name(parts[-1]) and not any(map(is_hidden, parts))


def _parts(name: str) -> list[str]:
    return [part for part in name.split("/") if part not in ("", ".")]


def _without_outer_folders(images: Sequence[zipfile.ZipInfo]) -> list[list[str]]:
    """Return the parts of the names, without a folder that contains all class folders: photos/cat/1.jpg → cat/1.jpg."""
    paths = [_parts(info.filename) for info in images]
    while len({parts[0] for parts in paths}) == 1 and min(map(len, paths)) > 2:
        paths = [parts[1:] for parts in paths]
    return paths
