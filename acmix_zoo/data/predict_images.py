"""Find the images to predict or classify in a file or folder."""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.inspection import inspect_images
from acmix_zoo.data.sources.find_images import skip_remarks, walk_folders
from acmix_zoo.data.wording import count_noun


class FoundImages(NamedTuple):
    """Images found in a file or folder.

    Attributes:
        paths: the image files.
        remarks: one line for each kind of file that was skipped.
    """

    paths: list[str]
    remarks: list[str]


def find_images_in(location: Path) -> FoundImages:
    """Return the images in a folder and its subfolders.

    If `location` is a file, it is returned regardless of its extension.

    Raises:
        FileNotFoundError: `location` does not exist.
        ValueError: the folder contains no images. The message says what it contains instead.
    """
    if not location.exists():
        raise FileNotFoundError(f"{location} does not exist. Expected an image or a folder of images. Check the path")
    if not location.is_dir():
        return FoundImages([str(location)], [])
    walk = walk_folders([location])
    skipped = skip_remarks(walk, location)
    if not walk.images[0]:
        raise ValueError(f"{location} contains no images" + "".join(f"; {line}" for line in skipped))
    return FoundImages(walk.images[0], [f"{location}: {line}" for line in skipped])


def readable_images_in(location: str | None) -> FoundImages:
    """Return the readable images in a folder and its subfolders, or the image in a file.

    Raises:
        FileNotFoundError: `location` does not exist.
        ValueError: `location` is None, or contains no readable image.
    """
    if location is None:
        raise ValueError(
            "there is nothing to predict. Expected an image or a folder of images: --data.predict PATH, or in Python "
            "ImageDataModule(..., predict=PATH)"
        )
    path = Path(location).expanduser()
    found = find_images_in(path)
    inspection = inspect_images(found.paths)
    problems = inspection.problems
    if not problems:
        return found
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    message = f"{path}: {count_noun(len(problems), 'file')} cannot be predicted: {'; '.join(problems[:5])}{more}"
    if len(problems) == len(found.paths):
        raise ValueError(f"{message}. Repair the files, or choose other images with --data.predict")
    unreadable = set(inspection.unreadable)
    return FoundImages([p for p in found.paths if p not in unreadable], [*found.remarks, message])
