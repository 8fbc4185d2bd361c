"""Find image files below folders: resolve links, count each file once, and count what is skipped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

from acmix_zoo.data.formats import is_hidden, is_image_name, is_lost_image, skip_advice
from acmix_zoo.data.sources.base import counted, first_few

HIDDEN = "hidden"
LINKS_BACK = "links back"
REPEATED = "repeated"


@dataclass
class Walk:
    """Result of walking through folders.

    Attributes:
        images: the sorted paths of the images in each folder.
        skipped: number of files or links for each reason: `HIDDEN`, `LINKS_BACK` (links to a folder that contains the
            link itself), `REPEATED` (links to something already counted), or an extension in lower case.
        examples: the alphabetically first path for each reason.
    """

    images: list[list[str]]
    skipped: dict[str, int] = field(default_factory=dict)
    examples: dict[str, str] = field(default_factory=dict)

    def skip(self, reason: str, path: str) -> None:
        """Record a skipped path."""
        self.skipped[reason] = self.skipped.get(reason, 0) + 1
        self.examples[reason] = min(path, self.examples.get(reason, path))

    def add(self, other: Walk) -> None:
        """Add the skipped files of another walk, but not its images."""
        for reason, count in other.skipped.items():
            self.skipped[reason] = self.skipped.get(reason, 0) + count
            self.examples[reason] = min(other.examples[reason], self.examples.get(reason, other.examples[reason]))


def walk_folders(places: Sequence[str | Path], root: str | Path | None = None) -> Walk:
    """Find the images below each of `places`, for instance the class folders of one split.

    A file that can be reached in two ways is counted once: at its real location if that is below `places`, otherwise
    at the first link to it. Links may lead anywhere except back up. A link to a folder that contains `root` or one of
    `places` is skipped, because following it would put the images of all other classes into this class.

    Args:
        places: the folders to look in.
        root: the root folder of the data set.

    Raises:
        ValueError: two folders contain links to the same file.
        OSError: a folder cannot be read.
    """
    folders = [str(Path(place)) for place in places]  # without a trailing slash
    walk = Walk([[] for _ in folders])
    real_folders = [os.path.realpath(folder) for folder in folders]
    above = [*real_folders, *([os.path.realpath(root)] if root is not None else [])]
    visited: set[str] = set()
    links: list[tuple[int, str]] = []
    for number, (folder, real) in enumerate(zip(folders, real_folders, strict=True)):
        _walk_tree(walk, number, folder, real, visited, links)
    if links:
        owner: dict[
            str, tuple[int, str]
        ] = {}  # real path of a file: the folder that contains it, and the link if there is one
        for number, (folder, real) in enumerate(zip(folders, real_folders, strict=True)):
            owner |= {real + path[len(folder) :]: (number, "") for path in walk.images[number]}
        _follow_links(walk, links, above, visited, owner)
    for images in walk.images:
        images.sort()
    return walk


def find_images(folder: str | Path) -> list[str]:
    """Return the sorted paths of all images below `folder`, without hidden ones."""
    return walk_folders([folder]).images[0]


def _walk_tree(
    walk: Walk, number: int, folder: str, real: str, visited: set[str], links: list[tuple[int, str]]
) -> None:
    """Add the images below one folder, and collect its links for later."""
    stack = [(folder, real)]
    while stack:
        path, real = stack.pop()
        if real in visited:
            walk.skip(REPEATED, path)
            continue
        visited.add(real)
        with os.scandir(path) as entries:
            for entry in entries:
                name = entry.name
                if is_hidden(name):
                    walk.skip(HIDDEN, entry.path)
                elif entry.is_symlink():
                    links.append((number, entry.path))
                elif entry.is_dir(follow_symlinks=False):
                    stack.append((entry.path, os.path.join(real, name)))
                elif is_image_name(name) and entry.is_file(follow_symlinks=False):
                    walk.images[number].append(entry.path)
                else:
                    walk.skip(os.path.splitext(name)[1].lower(), entry.path)


def _follow_links(
    walk: Walk,
    links: list[tuple[int, str]],
    above: list[str],
    visited: set[str],
    owner: dict[str, tuple[int, str]],
) -> None:
    while links:
        waiting, links[:] = sorted(links), []
        for number, path in waiting:
            target = os.path.realpath(path)
            if os.path.isdir(target):
                if target in visited:
                    walk.skip(REPEATED, path)
                elif any((folder + os.sep).startswith(target.rstrip(os.sep) + os.sep) for folder in above):
                    walk.skip(LINKS_BACK, path)
                else:
                    start = len(walk.images[number])
                    _walk_tree(walk, number, path, target, visited, links)
                    found = walk.images[number][start:]
                    del walk.images[number][start:]
                    for file in found:
                        _add_file(walk, number, file, target + file[len(path) :], owner)
            elif not is_image_name(os.path.basename(path)):
                walk.skip(os.path.splitext(path)[1].lower(), path)
            else:  # includes broken links, which the check before a run reports
                _add_file(walk, number, path, target, owner)


def _add_file(walk: Walk, number: int, path: str, real: str, owner: dict[str, tuple[int, str]]) -> None:
    if real not in owner:
        owner[real] = number, path
        walk.images[number].append(path)
        return
    other, link = owner[real]
    if link and other != number:
        raise ValueError(
            f"{link} and {path} are links to the same image, {real}, in two folders. "
            "Expected each image in one class; remove one of the links"
        )
    walk.skip(REPEATED, path)


def skip_remarks(walk: Walk, root: str | Path) -> list[str]:
    """Return one line for each kind of file that was skipped, starting with those that may be images."""
    extensions = sorted(set(walk.skipped) - {HIDDEN, LINKS_BACK, REPEATED})
    first = {reason: f" (first: {os.path.relpath(path, root)})" for reason, path in walk.examples.items()}
    lines = [
        f"skipped {counted_files(walk.skipped[extension], extension)}{first[extension]}: {skip_advice(extension)}"
        for extension in extensions
        if is_lost_image(extension)
    ]
    others = {extension: walk.skipped[extension] for extension in extensions if not is_lost_image(extension)}
    if others:
        kinds = first_few([f"{extension} {count}" for extension, count in others.items()], 8)
        lines.append(f"skipped {counted(sum(others.values()), 'other file')}: {kinds}")
    for reason, what in (
        (LINKS_BACK, "links back up to a folder that contains them"),
        (REPEATED, "links to images or folders that were already counted"),
        (HIDDEN, "hidden files and folders"),
    ):
        if reason in walk.skipped:
            lines.append(f"skipped {what}: {walk.skipped[reason]:,}{first[reason]}")
    return lines


def counted_files(count: int, extension: str) -> str:
    """Return a number of files with their kind: "1 .heic file", "2 files without an extension"."""
    return counted(count, f"{extension} file") if extension else counted(count, "file") + " without an extension"


def is_link_back(entry: os.DirEntry[str], folder: str | Path) -> bool:
    """Return whether an entry of `folder` is a link to the folder itself or to one that contains it."""
    if not entry.is_symlink():
        return False
    return (os.path.realpath(folder) + os.sep).startswith(os.path.realpath(entry.path).rstrip(os.sep) + os.sep)
