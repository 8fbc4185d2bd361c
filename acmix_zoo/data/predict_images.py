"""Find the images to predict or classify: a file, a folder, or what matches a pattern."""

from __future__ import annotations

import glob
import os
import re
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.formats import is_image_name
from acmix_zoo.data.inspection import inspect_images
from acmix_zoo.data.sources.find_images import skip_remarks, walk_folders
from acmix_zoo.data.wording import count_noun

_URL = re.compile(r"[A-Za-z][A-Za-z0-9+.-]+:/")  # `Path` merges the two slashes


class FoundImages(NamedTuple):
    """Images found in a file or folder, or with a pattern.

    Attributes:
        paths: the image files.
        remarks: one line for each kind of file that was skipped.
    """

    paths: list[str]
    remarks: list[str]


def find_images_in(location: str | Path) -> FoundImages:
    """Return the images that a path or a pattern stands for.

    Args:
        location: an image file, which is returned regardless of its extension; a folder, of which all images in it and
            in its subfolders are returned; or a pattern with the wildcards `*`, `?`, `[…]` and `**`, for programs that
            no shell expands them for.

    Raises:
        FileNotFoundError: nothing has this path, or nothing matches the pattern.
        ValueError: this is empty or a URL, or there are no images. The message says what there is instead.
    """
    if not str(location):  # such as a shell variable that is not set; `Path` takes it for the working directory
        raise ValueError(
            "the path of the images is empty. Expected an image, a folder or a pattern. Check the argument"
        )
    if _URL.match(str(location)):
        raise ValueError(
            f"{location} is a URL. Expected an image file, a folder or a pattern such as 'photos/*.jpg'. Download the "
            "image first"
        )
    path = Path(location).expanduser()
    if path.is_dir():
        return _images_among([path], path)
    if path.exists():
        return FoundImages([str(path)], [])
    if not glob.has_magic(str(path)):
        raise FileNotFoundError(f"{location} does not exist. Expected an image or a folder of images. Check the path")
    matches = sorted(map(Path, glob.glob(str(path), recursive=True)))
    if not matches:
        raise FileNotFoundError(
            f"nothing matches {location}. Expected a pattern such as 'photos/*.jpg'. Check the path"
        )
    return _images_among(matches, path)


def _images_among(paths: Sequence[Path], location: Path) -> FoundImages:
    """Return the images among files and in folders, each once and sorted.

    Args:
        paths: the files and folders.
        location: the folder or pattern that they come from, for messages.

    Raises:
        ValueError: there are none.
    """
    folders = {path for path in paths if path.is_dir()}
    outermost = [path for path in paths if folders.isdisjoint(path.parents)]  # ** matches what is in a folder as well
    walk = walk_folders([path for path in outermost if path in folders])
    images = [image for found in walk.images for image in found]
    for path in outermost:
        if path not in folders and is_image_name(path.name):
            images.append(str(path))
        elif path not in folders:
            walk.skip(path.suffix.lower(), str(path))
    skipped = skip_remarks(walk, location if location.is_dir() else os.path.commonpath([p.parent for p in paths]))
    if not images:
        raise ValueError(f"{location} contains no images" + "".join(f"; {line}" for line in skipped))
    return FoundImages(sorted(images), [f"{location}: {line}" for line in skipped])


def readable_images_in(location: str | Sequence[str] | None) -> FoundImages:
    """Return those images that are readable.

    Args:
        location: as for `find_images_in`, or several of them.

    Raises:
        FileNotFoundError: `location` does not exist.
        ValueError: `location` is None, or contains no readable image.
    """
    if isinstance(location, Sequence) and not isinstance(location, str):
        return _readable_among([find_images_in(each) for each in location], "the given images")
    if location is None:
        raise ValueError(
            "there is nothing to predict. Expected an image or a folder of images. Set --data.predict PATH, or in "
            "Python the argument `predict` of the data module"
        )
    return _readable_among([find_images_in(location)], location)


def _readable_among(parts: Sequence[FoundImages], location: str) -> FoundImages:
    """Return the readable images of all parts, each once. `location` is what messages call them."""
    paths = list(dict.fromkeys(path for part in parts for path in part.paths))
    found = FoundImages(paths, [remark for part in parts for remark in part.remarks])
    inspection = inspect_images(found.paths)
    problems = inspection.problems
    if not problems:
        return found
    more = f"; and {len(problems) - 5} more" if len(problems) > 5 else ""
    message = f"{location}: {count_noun(len(problems), 'file')} cannot be predicted: {'; '.join(problems[:5])}{more}"
    if len(problems) == len(found.paths):
        raise ValueError(f"{message}. Repair the files, or choose other images")
    unreadable = set(inspection.unreadable)
    return FoundImages([p for p in found.paths if p not in unreadable], [*found.remarks, message])
