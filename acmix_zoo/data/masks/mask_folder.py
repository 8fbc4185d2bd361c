"""`MaskFolder`: a folder of images and masks, whose files have the same names."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from acmix_zoo.data.masks.class_list import ClassOptions
from acmix_zoo.data.masks.mask_images import MaskImages
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.find_images import walk_folders
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.split_names import SPLIT_NAMES, local_name, match_splits
from acmix_zoo.data.wording import count_noun, first_few

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentationclass")
_SUFFIXES = ("", "_mask", "_label", "_labels", "_gt", "_L")  # of a mask's name, after that of its image
LAYOUT = "images/train/1.jpg with masks/train/1.png, or train/images/1.jpg with train/masks/1.png"


def is_mask_folder(path: Path) -> bool:
    """Return whether a folder has the layout of `MaskFolder`."""
    if not path.is_dir():
        return False
    roots = [path, *(path / name for name in _folder_names(path) if name.lower() in SPLIT_NAMES)]
    return any(_subfolder(root, IMAGE_FOLDERS) and _subfolder(root, MASK_FOLDERS) for root in roots)


class MaskFolder(IndexedSource):
    """A folder of images and masks: `images/train` and `masks/train`, `train/images` and `train/masks`, or no splits.

    A mask has the name of its image, except for the extension and an ending such as `_mask`. Images without a mask are
    skipped, which `remarks` says.

    Raises:
        ValueError: the layout is different, no image has a mask, or there is no class list.
    """

    license = "unknown"
    origin = "local folder"

    def __init__(self, root: Path, options: ClassOptions) -> None:
        self.root = root
        self.name = local_name(root)
        self.remarks: list[str] = []
        self._files = {split: self._pair_up(split, *folders) for split, folders in _find_folders(root).items()}
        self.classes = options.resolve(root, str(root))
        self.class_names = self.classes.names

    def _pair_up(self, split: str, images: Path, masks: Path) -> list[tuple[str, str]]:
        """Return the paths of each image of a split and of its mask."""
        paths = walk_folders([images]).images[0]
        by_name = {_relative_stem(path, masks): path for path in walk_folders([masks]).images[0]}
        pairs, missing = [], []
        for path in paths:
            stem = _relative_stem(path, images)
            mask = next((by_name[stem + suffix] for suffix in _SUFFIXES if stem + suffix in by_name), None)
            if mask is None:
                missing.append(os.path.relpath(path, self.root))
            else:
                pairs.append((path, mask))
        if not pairs:
            found = f"{count_noun(len(paths), 'image')} and {count_noun(len(by_name), 'mask')}"
            raise ValueError(
                f"no image in {images} has a mask in {masks} ({found}). Expected masks with the names of their images, "
                "such as 1.jpg and 1.png"
            )
        if missing:
            self.remarks.append(
                f"skipped {count_noun(len(missing), f'{split} image')} without a mask: {first_few(missing)}"
            )
        if unused := len(set(by_name.values()) - {mask for _, mask in pairs}):
            self.remarks.append(f"skipped {count_noun(unused, f'{split} mask')} without an image")
        return pairs

    def missing_split_advice(self, split: str) -> str:
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


def _find_folders(root: Path) -> dict[str, tuple[Path, Path]]:
    """Return the folder of images and the folder of masks of each split."""
    images, masks = _subfolder(root, IMAGE_FOLDERS), _subfolder(root, MASK_FOLDERS)
    if images and masks:
        splits, mask_splits = (match_splits(_folder_names(folder), str(folder)) for folder in (images, masks))
        if not splits:
            return {"train": (images, masks)}
        found = {
            split: (images / name, masks / mask_splits[split]) for split, name in splits.items() if split in mask_splits
        }
    else:
        splits = match_splits(_folder_names(root), str(root))
        inner = {
            split: (_subfolder(root / n, IMAGE_FOLDERS), _subfolder(root / n, MASK_FOLDERS))
            for split, n in splits.items()
        }
        found = {split: (i, m) for split, (i, m) in inner.items() if i and m}
    if "train" not in found:
        raise ValueError(
            f"{root} contains {first_few(_folder_names(root)) or 'no folders'}, but no images with masks for training. "
            f"Expected {LAYOUT}"
        )
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
