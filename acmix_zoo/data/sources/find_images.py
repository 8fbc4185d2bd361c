"""Find image files below folders: resolve links, count each file once, and count what is skipped."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import NamedTuple

from acmix_zoo.data.formats import is_hidden, is_image_name, is_unsupported_image, skip_advice
from acmix_zoo.data.wording import count_noun, first_few

HIDDEN, PARENT_LINK, REPEATED, RUNS = REASONS = "hidden", "link to a parent folder", "repeated", "runs"
"""Reasons for skipping a file, see `Walk`."""
LEARNING_RATE_PLOT = "learning_rate.png"
"""The only file in the folder of a run that looked for a learning rate."""


@dataclass
class Walk:
    """Result of walking through folders.

    Attributes:
        images: the sorted paths of the images in each folder.
        skipped: number of files or links for each reason: `HIDDEN`, `PARENT_LINK` (a link to a folder that contains the
            link itself), `REPEATED` (a link to something already counted), `RUNS` (a folder of training runs), or an
            extension in lower case.
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


def walk_folders(locations: Sequence[str | Path], root: str | Path | None = None) -> Walk:
    """Find the images below each of `locations`, for instance the class folders of one split.

    A file that can be reached in two ways is counted once: at its real location if that is below `locations`,
    otherwise at the first link to it. Links may lead anywhere except to a parent folder: a link to a folder that
    contains `root` or one of `locations` is skipped, because it would put the images of all classes into this class.

    Args:
        locations: the folders to look in.
        root: the root folder of the data set.

    Raises:
        ValueError: two folders contain links to the same file.
        OSError: a folder cannot be read.
    """
    folders = [str(Path(location)) for location in locations]  # without a trailing slash
    walker = _Walker(folders, root)
    for number, (folder, real) in enumerate(zip(folders, walker.real_folders, strict=True)):
        walker.walk_tree(number, folder, real)
    if walker.links:
        walker.follow_links()
    for images in walker.walk.images:
        images.sort()
    return walker.walk


class _Owner(NamedTuple):
    """How an image file was first reached.

    Attributes:
        number: number of the folder that it was counted in.
        link: the link that leads to it; "" if the file itself is below the folder.
    """

    number: int
    link: str


class _Walker:
    """State of a walk: real folders come first, then the links found in them.

    Attributes:
        walk: the result so far.
        real_folders: the folders with all links resolved.
        links: links that have not been followed yet, with the number of the folder that contains each.
    """

    def __init__(self, folders: Sequence[str], root: str | Path | None) -> None:
        self.walk = Walk([[] for _ in folders])
        self.folders = folders
        self.real_folders = [os.path.realpath(folder) for folder in folders]
        self.links: list[tuple[int, str]] = []
        self._forbidden = [*self.real_folders, *([os.path.realpath(root)] if root is not None else [])]
        self._visited: set[str] = set()

    def walk_tree(self, number: int, folder: str, real: str) -> None:
        """Add the images below a folder, whose real path is given, and collect its links for later."""
        stack = [(folder, real)]
        while stack:
            path, real = stack.pop()
            if real in self._visited:
                self.walk.skip(REPEATED, path)
                continue
            self._visited.add(real)
            with os.scandir(path) as entries:
                for entry in entries:
                    name = entry.name
                    if is_hidden(name):
                        self.walk.skip(HIDDEN, entry.path)
                    elif entry.is_symlink():
                        self.links.append((number, entry.path))
                    elif entry.is_dir(follow_symlinks=False):
                        if is_run(entry.path):  # with pictures of its own
                            self.walk.skip(RUNS, entry.path)
                            continue
                        stack.append((entry.path, os.path.join(real, name)))
                    elif is_image_name(name) and entry.is_file(follow_symlinks=False):
                        self.walk.images[number].append(entry.path)
                    else:
                        self.walk.skip(os.path.splitext(name)[1].lower(), entry.path)

    def follow_links(self) -> None:
        """Add the images that links lead to, unless they are already counted."""
        owners: dict[str, _Owner] = {}  # by the real path of the file
        for number, (folder, real) in enumerate(zip(self.folders, self.real_folders, strict=True)):
            owners |= {real + path[len(folder) :]: _Owner(number, "") for path in self.walk.images[number]}
        while self.links:
            waiting, self.links = sorted(self.links), []
            for number, path in waiting:
                target = os.path.realpath(path)
                if os.path.isdir(target):
                    self._follow_folder(number, path, target, owners)
                elif not is_image_name(os.path.basename(path)):
                    self.walk.skip(os.path.splitext(path)[1].lower(), path)
                else:  # includes broken links, which the check before a run reports
                    self._add_file(number, path, target, owners)

    def _follow_folder(self, number: int, path: str, target: str, owners: dict[str, _Owner]) -> None:
        if target in self._visited:
            self.walk.skip(REPEATED, path)
            return
        if any((folder + os.sep).startswith(target.rstrip(os.sep) + os.sep) for folder in self._forbidden):
            self.walk.skip(PARENT_LINK, path)
            return
        images = self.walk.images[number]
        start = len(images)
        self.walk_tree(number, path, target)
        found = images[start:]
        del images[start:]
        for file in found:
            self._add_file(number, file, target + file[len(path) :], owners)

    def _add_file(self, number: int, path: str, real: str, owners: dict[str, _Owner]) -> None:
        owner = owners.get(real)
        if owner is None:
            owners[real] = _Owner(number, path)
            self.walk.images[number].append(path)
            return
        if owner.link and owner.number != number:
            raise ValueError(
                f"{owner.link} and {path} are links to the same image, {real}, in two folders. "
                "Expected each image in one class. Remove one of the links"
            )
        self.walk.skip(REPEATED, path)


def skip_remarks(walk: Walk, root: str | Path) -> list[str]:
    """Return one line for each kind of file that was skipped, starting with those that may be images."""
    extensions = sorted(set(walk.skipped).difference(REASONS))
    first = {reason: f" (first: {os.path.relpath(path, root)})" for reason, path in walk.examples.items()}
    lines = [
        f"skipped {count_files(walk.skipped[extension], extension)}{first[extension]}: {skip_advice(extension)}"
        for extension in extensions
        if is_unsupported_image(extension)
    ]
    others = {extension: walk.skipped[extension] for extension in extensions if not is_unsupported_image(extension)}
    if others:
        kinds = first_few([f"{extension} {count}" for extension, count in others.items()], 8)
        lines.append(f"skipped {count_noun(sum(others.values()), 'other file')}: {kinds}")
    for reason, what in (
        (PARENT_LINK, "links to a folder that contains them"),
        (REPEATED, "links to images or folders that were already counted"),
        (HIDDEN, "hidden files and folders"),
        (RUNS, "folders of training runs"),
    ):
        if reason in walk.skipped:
            lines.append(f"skipped {what}: {walk.skipped[reason]:,}{first[reason]}")
    return lines


def count_files(count: int, extension: str) -> str:
    """Return a number of files with their kind: "1 .heic file", "2 files without an extension"."""
    return count_noun(count, f"{extension} file") if extension else count_noun(count, "file") + " without an extension"


def is_run(folder: str | Path) -> bool:
    """Return whether a folder is that of a training run.

    A run that a Python program trained has no config.yaml. A search for a learning rate leaves only a plot.
    """
    checkpoints = os.path.join(folder, "checkpoints")
    if not os.path.isdir(checkpoints):
        if not os.path.isfile(os.path.join(folder, LEARNING_RATE_PLOT)):
            return False
        with os.scandir(folder) as entries:
            return len(list(islice(entries, 2))) == 1
    is_of_command = os.path.isfile(os.path.join(folder, "config.yaml"))
    return is_of_command or any(name.endswith(".ckpt") for name in os.listdir(checkpoints))


def holds_runs(folder: str | Path) -> bool:
    """Return whether a folder next to class folders is a training run, or runs/, where commands write them."""
    if is_run(folder):
        return True
    if os.path.basename(folder) != "runs":
        return False
    with os.scandir(folder) as entries:  # a class may have this name
        return not any(is_image_name(entry.name) for entry in entries)


def is_parent_link(entry: os.DirEntry[str], folder: str | Path) -> bool:
    """Return whether an entry of `folder` is a link to the folder itself or to one that contains it."""
    if not entry.is_symlink():
        return False
    return (os.path.realpath(folder) + os.sep).startswith(os.path.realpath(entry.path).rstrip(os.sep) + os.sep)
