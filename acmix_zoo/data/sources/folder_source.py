"""`FolderSource`: a folder of class folders. Finds splits and classes, and reports problems and skipped files."""

from __future__ import annotations

import hashlib
import os
import unicodedata
from collections.abc import Iterable, Sequence
from pathlib import Path

import numpy as np

from acmix_zoo.data.formats import is_hidden, is_image_name, is_unsupported_image, skip_advice
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.find_images import (
    HIDDEN,
    PARENT_LINK,
    REASONS,
    RUNS,
    Walk,
    count_files,
    holds_runs,
    is_parent_link,
    skip_remarks,
    walk_folders,
)
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.shards import SHARD_KINDS
from acmix_zoo.data.sources.split_names import SPLIT_NAMES, local_name, match_splits
from acmix_zoo.data.wording import count_noun, first_few


class FolderSource(IndexedSource):
    """A folder of class folders: `root/<class>/**/image.jpg`, or the same below `root/train`, `root/val`, `root/test`.

    Classes are the sorted names of the training split's folders, in Unicode's composed form (NFC). Links are followed.
    An image that can be reached in two ways within a split is counted once. `remarks` lists what was skipped, and why.

    Args:
        root: the folder.

    Attributes:
        folders: the folder of each split.

    Raises:
        ValueError: there is no class folder or only one; a class folder contains no image; val or test has a class
            that the training split lacks; a split or class has two folders; or a split has no class folders.
    """

    license = "unknown"
    origin = "local folder"

    def __init__(self, root: str | Path) -> None:
        self.root = Path(root).expanduser()
        self.name = local_name(self.root)
        self.remarks: list[str] = []
        self._skipped = Walk([])
        self.folders = self._find_splits()
        self._class_folders = {split: self._classes_in(folder) for split, folder in self.folders.items()}
        self.class_names = tuple(sorted(self._class_folders["train"]))
        self._check_classes()
        self._files = {split: self._list_images(split) for split in self.folders}
        self._note_top_level()
        self.remarks += skip_remarks(self._skipped, self.root)

    def missing_split_advice(self, split: str) -> str:
        return f"Add a {split}/ folder with the same class folders"

    # ---- layout

    def _find_splits(self) -> dict[str, Path]:
        """Return the folder of each split. If the root contains class folders, it is the training split itself."""
        names = self._subfolders(self.root)
        split_like = [name for name in names if name.lower() in SPLIT_NAMES]
        # A class may be called "train". Split folders are therefore those that contain class folders.
        found = match_splits((name for name in split_like if self._subfolders(self.root / name)), str(self.root))
        classless = [name for name in split_like if name not in found.values()]
        others = [name for name in names if name not in split_like]
        if found and "train" not in found:
            raise ValueError(
                f"{self.root} has {', '.join(sorted(found.values()))}/ but no train/. Expected class folders in "
                f"{self.root}/train"
            )
        if found:
            self._note_unused(others, classless)
            return {split: self.root / name for split, name in found.items()}
        if classless and (not others or [name.lower() for name in classless] != ["train"]):
            raise self._classless_split_error(others, classless)
        return {"train": self.root}

    def _classless_split_error(self, classes: Sequence[str], classless: Sequence[str]) -> ValueError:
        """Return the error for folders that are named like splits but contain no class folders."""
        neighbours = f", next to the classes {first_few(classes)}" if classes else ""
        return ValueError(
            f"no class folders in {' and '.join(f'{self.root / name}' for name in classless)}{neighbours}. Expected "
            f"{self.root / classless[0]}/<class>/image.jpg. Move unlabelled images out of the data set (use `acmix-zoo "
            "predict` to label them). If the folder is a class, rename it"
        )

    def _note_unused(self, others: Sequence[str], classless: Sequence[str]) -> None:
        """Add remarks on unused folders: those next to the splits, and splits without class folders."""
        for name in classless:
            walk = walk_folders([self.root / name])
            self._skipped.add(walk)
            if count := len(walk.images[0]):
                self.remarks.append(
                    f"skipped {self.root / name}, which has {count_noun(count, 'image')} but no class folders. To "
                    f"label them, use `acmix-zoo predict` with --data.predict {self.root / name}"
                )
        if others:
            self.remarks.append(
                f"skipped folders next to the splits: {first_few(others)} (splits are named {', '.join(SPLIT_NAMES)})"
            )

    def _subfolders(self, folder: Path) -> list[str]:
        """Return the sorted names of the folders in `folder`, except hidden ones, links to a parent folder and runs."""
        with os.scandir(folder) as entries:
            return sorted(
                entry.name
                for entry in entries
                if not is_hidden(entry.name)
                and os.path.isdir(entry.path)
                and not is_parent_link(entry, folder)
                and not holds_runs(entry.path)
            )

    def _note_top_level(self) -> None:
        """Count what is skipped next to the class folders and next to the splits."""
        for folder in sorted({self.root, *self.folders.values()}):
            images, shards = 0, []
            with os.scandir(folder) as entries:
                for entry in entries:
                    extension = os.path.splitext(entry.name)[1].lower()
                    if is_hidden(entry.name):
                        self._skipped.skip(HIDDEN, entry.path)
                    elif os.path.isdir(entry.path):
                        if is_parent_link(entry, folder):
                            self._skipped.skip(PARENT_LINK, entry.path)
                        elif holds_runs(entry.path):
                            self._skipped.skip(RUNS, entry.path)
                    elif is_image_name(entry.name):
                        images += 1
                    elif extension in SHARD_KINDS:
                        shards.append(entry.name)
                    elif extension and is_unsupported_image(extension):  # not: README, classes.txt
                        self._skipped.skip(extension, entry.path)
            if images:
                outside = "class folders" if folder in self.folders.values() else "splits"
                self.remarks.append(
                    f"skipped {count_noun(images, 'image')} directly in {folder}, outside the {outside}"
                )
            if shards:
                self.remarks.append(
                    f"skipped {first_few(sorted(shards))}, because {folder} has class folders. To use a table or tar "
                    "file instead, give its path"
                )

    # ---- classes

    def _classes_in(self, folder: Path) -> dict[str, str]:
        """Return the folder name of each class."""
        found: dict[str, str] = {}
        for name in self._subfolders(folder):
            if not _is_text(name):
                raise ValueError(f"the name of the folder {name!a} in {folder} is not valid UTF-8. Rename the folder")
            label = unicodedata.normalize("NFC", name)
            if label in found:
                raise ValueError(
                    f"{folder} has two folders named {label!r}, {found[label]!a} and {name!a}, which differ "
                    "only in how Unicode encodes the accents. Expected one folder per class. Move the images into one "
                    "of them"
                )
            found[label] = name
        return found

    def _check_classes(self) -> None:
        root = self.folders["train"]
        expected = f"Expected {root}/<class>/image.png, with a folder for each of at least two classes"
        if not self.class_names:
            images = _count_images(root)
            found = f" but {count_noun(images, 'image')}" if images else ""
            unsupported = [extension for extension in _extensions(root) if is_unsupported_image(extension)]
            advice = "".join(f". It has {ext or 'other'} files: {skip_advice(ext)}" for ext in unsupported)
            raise ValueError(f"{root} contains no class folders{found}. {expected}{advice}")
        if len(self.class_names) == 1:
            inner = root / self._class_folders["train"][self.class_names[0]]
            hint = f". Did you mean {inner}, which has subfolders?" if self._subfolders(inner) else ""
            raise ValueError(f"{root} contains only one class folder, {self.class_names[0]!r}. {expected}{hint}")
        for split, classes in self._class_folders.items():
            if unknown := sorted(set(classes) - set(self.class_names)):
                raise ValueError(
                    f"{self.folders[split]} has classes that the training split {root} does not have: "
                    f"{first_few([self._with_similar_class(name) for name in unknown])}. Rename or remove them, or add "
                    "them to the training split"
                )
        for first, second in _names_differing_in_case(self.class_names):
            self.remarks.append(f"the classes {first!r} and {second!r} differ only in case. Is that intended?")

    def _with_similar_class(self, unknown: str) -> str:
        """Return the name of a class that the training split lacks, with the training class that was probably meant."""
        similar = next((name for name in self.class_names if _simplify(name) == _simplify(unknown)), None)
        if similar is None:
            return unknown
        names = [unknown, similar]
        if not all(name.isascii() for name in names):
            names = [ascii(name)[1:-1] for name in names]  # so that different characters look different
        return f"{names[0]!r} (in training: {names[1]!r})"

    # ---- images

    def _list_images(self, split: str) -> list[list[str]]:
        """Return the sorted paths of the images of each class."""
        names = self._class_folders[split]
        folders = [self.folders[split] / names[label] for label in self.class_names if label in names]
        walk = walk_folders(folders, self.root)
        real: dict[str, str] = {}  # the first class folder that leads to each folder
        firsts = [real.setdefault(os.path.realpath(folder), folder.name) for folder in folders]
        empty = [
            folder.name + (f" (the same folder as {first})" if first != folder.name else _list_contents(folder))
            for folder, first, images in zip(folders, firsts, walk.images, strict=True)
            if not images
        ]
        if empty:
            raise ValueError(
                f"class folders in {self.folders[split]} contain no images: {first_few(empty)}. Add images, or remove "
                "the folders"
            )
        self._skipped.add(walk)
        paths = iter(walk.images)
        return [next(paths) if label in names else [] for label in self.class_names]

    def load(self) -> dict[str, Images]:
        splits: dict[str, Images] = {}
        for split, files in self._files.items():
            paths = [path for group in files for path in group]
            targets = np.repeat(np.arange(len(files)), [len(group) for group in files]).astype(np.int64)
            splits[split] = FileImages(paths, targets)
        return splits

    def fingerprint(self) -> str:
        digest = hashlib.sha256()
        for files in self._files.values():
            for path in (path for group in files for path in group):
                relative = unicodedata.normalize("NFC", os.path.relpath(path, self.root).replace(os.sep, "/"))
                size = os.path.getsize(path) if os.path.exists(path) else -1  # -1: a broken link
                digest.update(os.fsencode(relative) + f"\0{size}\n".encode())
        return digest.hexdigest()[:16]


def _list_contents(folder: Path) -> str:
    """Return a list, in parentheses, of the files in a class folder that has no image."""
    skipped = walk_folders([folder]).skipped
    kinds = [kind for kind in sorted(skipped) if kind not in REASONS]
    words = [
        count_files(skipped[extension], extension)
        + (f": {skip_advice(extension)}" if is_unsupported_image(extension) else "")
        for extension in kinds
    ]
    return f" ({'; '.join(words)})" if words else ""


def _count_images(folder: Path) -> int:
    return sum(is_image_name(name) for name in os.listdir(folder))


def _extensions(folder: Path) -> list[str]:
    """Return the sorted extensions of the files in a folder that are not hidden."""
    files = (entry.name for entry in os.scandir(folder) if not is_hidden(entry.name) and entry.is_file())
    return sorted({os.path.splitext(name)[1].lower() for name in files})


def _is_text(name: str) -> bool:
    try:
        name.encode()
    except UnicodeEncodeError:  # the file system returned bytes that are not valid text
        return False
    return True


def _simplify(name: str) -> str:
    """Return a name without differences in case, spacing and Unicode form."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().replace("_", " ").replace("-", " ").split())


def _names_differing_in_case(names: Iterable[str]) -> list[tuple[str, str]]:
    """Return pairs of names that differ only in case."""
    seen: dict[str, str] = {}
    pairs = []
    for name in names:
        if name.casefold() in seen:
            pairs.append((seen[name.casefold()], name))
        seen[name.casefold()] = name
    return pairs
