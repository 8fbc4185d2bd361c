"""`MaskFolder`: a folder of images and masks, whose files have the same names."""

from __future__ import annotations

import hashlib
import os
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acmix_zoo.data.formats import is_image_name
from acmix_zoo.data.masks.class_list import ClassOptions
from acmix_zoo.data.masks.mask_images import MaskImages, MaskSource
from acmix_zoo.data.sources.find_images import walk_folders
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.split_names import SPLIT_NAMES, listed_names, local_name, match_splits, read_split_lists
from acmix_zoo.data.wording import count_noun, first_few

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = ("masks", "mask", "segmentationclass", "annotations", "labels")  # Pascal VOC has Annotations, too
SPLIT_LISTS = "ImageSets/Segmentation"
_SUFFIXES = ("_mask", "_label", "_labels", "_gt", "_L")  # of a mask's name, after that of its image
LAYOUT = "images/train/1.jpg with masks/train/1.png, or train/images/1.jpg with train/masks/1.png"


def is_mask_folder(path: Path) -> bool:
    """Return whether a folder has the layout of `MaskFolder`. Labels that are text files, as for YOLO, are no masks."""
    if not path.is_dir():
        return False
    roots = [path, *(path / name for name in _folder_names(path) if name.lower() in SPLIT_NAMES)]
    masks = [_subfolder(root, MASK_FOLDERS) for root in roots if _subfolder(root, IMAGE_FOLDERS)]
    return any(is_image_name(name) for folder in masks if folder for _, _, names in os.walk(folder) for name in names)


class MaskFolder(MaskSource):
    """A folder of images and masks: `images/train` and `masks/train`, `train/images` and `train/masks`, or no splits.

    A mask has the name of its image, except for the extension and an ending such as `_mask`. Images without a mask are
    skipped, which `remarks` says. Without split folders, the names of each split's images may be listed in
    ImageSets/Segmentation/, as in Pascal VOC.

    Raises:
        ValueError: the layout is different, no image has a mask, or there is no class list.
    """

    license = "unknown"
    origin = "local folder"

    def __init__(self, root: Path, options: ClassOptions) -> None:
        self.root = root
        self.name = local_name(root)
        self.remarks: list[str] = []
        folders = _find_folders(root, self.remarks)
        pairs = {split: self._pair_up(split, *found) for split, found in folders.items()}
        self._files = {split: found for split, found in pairs.items() if found}
        self.classes = options.resolve(root, str(root))
        self.class_names = self.classes.names

    def _pair_up(self, split: str, images: Path, masks: Path, names: Sequence[str] | None) -> list[tuple[str, str]]:
        """Return the paths of each image of a split and of its mask."""
        paths = walk_folders([images]).images[0]
        if names is not None:
            existing = {_relative_stem(path, images) for path in paths}
            listed = set(listed_names(names, existing, split, self.root / SPLIT_LISTS, images.name))
            paths = [path for path in paths if _relative_stem(path, images) in listed]
            if absent := sorted(listed - existing):
                self.remarks.append(
                    f"skipped {count_noun(len(absent), 'name')} in {SPLIT_LISTS}/{split}.txt without an image: "
                    f"{first_few(absent)}"
                )
        by_name: dict[str, list[str]] = defaultdict(list)
        for path in walk_folders([masks]).images[0]:
            by_name[_relative_stem(path, masks)].append(path)
        stems = {_relative_stem(path, images) for path in paths}
        pairs, missing = [], []
        image_of: dict[str, str] = {}
        for path in paths:
            stem = _relative_stem(path, images)
            names_of_mask = [stem, *(stem + suffix for suffix in _SUFFIXES if stem + suffix not in stems)]
            found = next((by_name[name] for name in names_of_mask if name in by_name), [])
            if not found:
                missing.append(os.path.relpath(path, self.root))
                continue
            if len(found) > 1:
                raise ValueError(
                    f"{path} has the masks {' and '.join(found)}. Expected one. Remove or rename the others"
                )
            (mask,) = found
            if (other := image_of.setdefault(mask, path)) != path:
                raise ValueError(
                    f"{other} and {path} differ only in their extension, so both would use the mask {mask}. Expected "
                    "one image for each mask. Remove one of them"
                )
            pairs.append((path, mask))
        if not pairs and names is not None and split != "train":  # as for the test images of Pascal VOC
            self.remarks.append(f"left out the split {split}, because none of its images has a mask")
            return []
        if not pairs:
            counts = f"{count_noun(len(paths), 'image')} and {count_noun(len(by_name), 'mask')}"
            raise ValueError(
                f"no image in {images} has a mask in {masks} ({counts}). Expected masks with the names of their "
                "images, such as 1.jpg and 1.png"
            )
        if missing:
            self.remarks.append(
                f"skipped {count_noun(len(missing), f'{split} image')} without a mask: {first_few(missing)}"
            )
        if names is None and (unused := sum(map(len, by_name.values())) - len(pairs)):
            self.remarks.append(f"skipped {count_noun(unused, f'{split} mask')} without an image")
        return pairs

    def missing_split_advice(self, split: str) -> str:
        if split in self._empty:
            return super().missing_split_advice(split)
        if (self.root / SPLIT_LISTS).is_dir():
            return f"Add the names of its images as {SPLIT_LISTS}/{split}.txt"
        return f"Add images/{split} and masks/{split}"

    def load(self) -> dict[str, Images]:
        return {
            split: MaskImages(
                FileImages([image for image, _ in pairs], np.zeros(len(pairs), np.int64)),
                [mask for _, mask in pairs],
                self.classes,
            )
            for split, pairs in self._files.items()
        }

    def fingerprint(self) -> str:
        # names and sizes, as for class folders: reading all files would take minutes
        digest = hashlib.sha256(repr(self.class_names).encode())
        for split, pairs in self._files.items():
            for paths in pairs:
                for path in paths:
                    size = os.path.getsize(path) if os.path.exists(path) else -1
                    digest.update(
                        f"{split} {os.path.relpath(path, self.root)} {size}\n".encode(errors="surrogateescape")
                    )
        return digest.hexdigest()[:16]


class _SplitFolders(NamedTuple):
    """Where the files of a split are.

    Attributes:
        images: the folder of images.
        masks: the folder of masks.
        names: the lines that list the split's images; None for all images in the folder.
    """

    images: Path
    masks: Path
    names: Sequence[str] | None = None


def _find_folders(root: Path, remarks: list[str]) -> dict[str, _SplitFolders]:
    """Return the folders of each split. Add a remark about each split without images or masks."""
    images, masks = _subfolder(root, IMAGE_FOLDERS), _subfolder(root, MASK_FOLDERS)
    folders: dict[str, tuple[Path | None, Path | None]]
    if images and masks:
        splits, mask_splits = (match_splits(_folder_names(folder), str(folder)) for folder in (images, masks))
        if not splits:
            lists = read_split_lists(root / SPLIT_LISTS)
            listed = {split: _SplitFolders(images, masks, lines) for split, lines in lists.items()}
            return listed or {"train": _SplitFolders(images, masks)}
        folders = {
            split: (
                images / splits[split] if split in splits else None,
                masks / mask_splits[split] if split in mask_splits else None,
            )
            for split in {**splits, **mask_splits}
        }
        if beside := [entry for entry in images.iterdir() if is_image_name(entry.name)]:
            remarks.append(f"skipped {count_noun(len(beside), 'image')} directly in {images}, outside the splits")
    else:
        folders = {
            split: (_subfolder(root / name, IMAGE_FOLDERS), _subfolder(root / name, MASK_FOLDERS))
            for split, name in match_splits(_folder_names(root), str(root)).items()
        }
    found = {split: _SplitFolders(own, other) for split, (own, other) in folders.items() if own and other}
    if "train" not in found:
        raise ValueError(
            f"{root} contains {first_few(_folder_names(root)) or 'no folders'}, but no images with masks for training. "
            f"Expected {LAYOUT}"
        )
    for split in sorted(folders.keys() - found.keys()):
        absent = [kind for kind, folder in zip(("images", "masks"), folders[split], strict=True) if not folder]
        remarks.append(f"left out the split {split}, which has no folder of {' or '.join(absent)}")
    return found


def _folder_names(folder: Path) -> list[str]:
    return sorted(entry.name for entry in folder.iterdir() if entry.is_dir() and not entry.name.startswith("."))


def _subfolder(folder: Path, names: Sequence[str]) -> Path | None:
    """Return the first subfolder with one of these names, in any case."""
    found = {name.lower(): folder / name for name in _folder_names(folder)}
    return next((found[name] for name in names if name in found), None)


def _relative_stem(path: str, folder: Path) -> str:
    """Return a path relative to a folder, without its extension."""
    return os.path.splitext(os.path.relpath(path, folder))[0]
