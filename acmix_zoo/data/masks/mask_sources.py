"""Where images and their masks come from: folders with files of the same names, or a table with two image columns."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import numpy as np

from acmix_zoo.data.masks.mask_classes import CLASS_FILES, ClassList, MaskClasses, read_class_list
from acmix_zoo.data.masks.mask_images import MaskImages
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.find_images import walk_folders
from acmix_zoo.data.sources.image_sets import FileImages, Images
from acmix_zoo.data.sources.open import is_hub_id, source_not_found
from acmix_zoo.data.sources.path_safety import allowed_roots
from acmix_zoo.data.sources.recorded import current_recorded_source
from acmix_zoo.data.sources.shards import Shards
from acmix_zoo.data.sources.split_names import SPLIT_NAMES, local_name, match_splits
from acmix_zoo.data.sources.table import TableImages, is_table, load_tables, select_splits, table_origin
from acmix_zoo.data.wording import count_noun, first_few

IMAGE_FOLDERS = ("images", "image", "imgs", "img", "jpegimages")
MASK_FOLDERS = ("masks", "mask", "annotations", "labels", "segmentationclass")
MASK_COLUMNS = ("mask", "annotation", "segmentation_mask", "semantic_mask", "label", "labels")
_SUFFIXES = ("", "_mask", "_label", "_labels", "_gt", "_L")  # of a mask's name, after that of its image
_LAYOUT = "images/train/1.jpg with masks/train/1.png, or train/images/1.jpg with train/masks/1.png"
SOURCE_KINDS = (
    f"a folder with images and masks ({_LAYOUT}), a parquet file or a folder of such files with a column of images and "
    "one of masks, or the id of such a data set on the Hugging Face Hub"
)
"""What a source of images with masks is, in words."""


class ClassOptions(NamedTuple):
    """The options of the data module that say how masks encode classes. See `MaskDataModule`."""

    class_names: Sequence[str] | None = None
    classes_file: str | None = None
    first_class_value: int = 0
    ignore_values: Sequence[int] = (255,)

    def resolve(self, root: Path, source: str) -> MaskClasses:
        """Return the classes, from the options or a class list in the data set's folder.

        Raises:
            FileNotFoundError: `classes_file` does not exist.
            ValueError: there is no class list, or it is wrong.
        """
        given = Path(self.classes_file).expanduser() if self.classes_file else None
        if given is not None and not given.is_file():
            raise FileNotFoundError(
                f"classes_file {given} does not exist. Expected a text file with one class per line"
            )
        files = [root / name for name in CLASS_FILES] if root.is_dir() else []
        path = given or next((file for file in files if file.is_file()), None)
        listed = read_class_list(path) if path is not None else None
        if self.class_names is not None:
            is_same = listed is not None and tuple(listed.names) == tuple(self.class_names)
            listed = listed if is_same else ClassList(list(self.class_names))  # a list of other names has other colours
        if listed is None:
            raise ValueError(
                f"{source} does not say which classes its masks contain. Expected one class per line in "
                f"{root / CLASS_FILES[0] if root.is_dir() else 'a file'}, in the order of the mask's values, or with a "
                "colour ('128 64 128 road') for RGB masks. For another place, set data.classes_file; or list the names "
                "as data.class_names"
            )
        return MaskClasses(
            tuple(listed.names),
            self.first_class_value,
            tuple(self.ignore_values),
            tuple(listed.colours),
            tuple(listed.ignored_colours),
        )


def is_mask_folder(path: Path) -> bool:
    """Return whether a folder has the layout of `MaskFolder`."""
    if not path.is_dir():
        return False
    roots = [path, *(path / name for name in _folder_names(path) if name.lower() in SPLIT_NAMES)]
    return any(_subfolder(root, IMAGE_FOLDERS) and _subfolder(root, MASK_FOLDERS) for root in roots)


def open_mask_source(source: str, options: ClassOptions, mask_column: str | None = None) -> IndexedSource:
    """Open a data set of images and masks.

    Args:
        source: a folder of images and masks; a parquet file or a folder of such files; or the id of a Hub data set.
        options: how masks encode classes.
        mask_column: the column of masks, for tables in which it is not clear.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it is not a data set of images and masks. The message says what to do.
    """
    recorded = current_recorded_source()
    if recorded is not None:
        return recorded
    path = Path(source).expanduser()
    if (path.exists() and is_table(path)) or is_hub_id(source):
        return MaskTable(source, options, mask_column)
    if path.is_dir():
        return MaskFolder(path, options)
    raise source_not_found(source, SOURCE_KINDS)


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


class MaskTable(IndexedSource):
    """A Hub data set or parquet files with a column of images and one of masks.

    Raises:
        FileNotFoundError: there is no such data set.
        ValueError: it has no such columns, several candidates, or there is no class list.
    """

    def __init__(self, source: str, options: ClassOptions, mask_column: str | None = None) -> None:
        path = Path(source).expanduser()
        self.name = local_name(path) if path.exists() else source
        self.origin = table_origin(path)
        self.roots = allowed_roots(source)
        self.tables = select_splits(load_tables(source, Shards(path)), source)
        train = self.tables["train"]
        self.license = str(train.info.license or "unknown")
        self.image_column, self.mask_column = find_columns(train.features, source, mask_column)
        self.classes = options.resolve(path, source)
        self.class_names = self.classes.names

    def load(self) -> dict[str, Images]:
        import datasets

        splits: dict[str, Images] = {}
        for split, table in self.tables.items():
            columns = []
            for column in (self.image_column, self.mask_column):
                undecoded = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
                targets = np.zeros(len(table), np.int64)
                name = f"{self.name}/{split}" + f".{column}" * (column == self.mask_column)
                columns.append(TableImages(undecoded, column, targets, name, self.roots))
            splits[split] = MaskImages(columns[0], columns[1], self.classes)
        return splits

    def fingerprint(self) -> str:
        digest = hashlib.sha256(repr(self.class_names).encode())
        for images in self.splits.values():
            assert isinstance(images, MaskImages) and isinstance(images.masks, TableImages)
            digest.update(str(len(images)).encode())
            for index in np.linspace(0, len(images) - 1, num=min(64, len(images)), dtype=int).tolist():
                assert isinstance(images.images, TableImages)
                digest.update(images.images.encoded_image(index))
                digest.update(images.masks.encoded_image(index))
        return digest.hexdigest()[:16]


def find_columns(features: Mapping[str, object], source: str, requested: str | None) -> tuple[str, str]:
    """Return the names of the columns of images and of masks.

    Args:
        features: the columns of a table and their types.
        source: name of the data set for messages.
        requested: the column of masks that the user has named, if any.

    Raises:
        ValueError: there are no such columns.
    """
    import datasets

    pictures = [name for name, feature in features.items() if isinstance(feature, datasets.Image | dict)]
    if requested is not None and requested not in pictures:
        raise ValueError(f"{source}: no image column {requested!r}. Expected one of {', '.join(pictures) or 'none'}")
    mask = requested or next((name for name in MASK_COLUMNS if name in pictures), None)
    image = "image" if "image" in pictures else next((name for name in pictures if name != mask), None)
    if mask is None or image is None or image == mask:
        raise ValueError(
            f"{source}: expected a column of images and one of masks ({', '.join(MASK_COLUMNS)}), found "
            f"{', '.join(features)}. Set data.mask_column to the column of masks"
        )
    return image, mask


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
            f"Expected {_LAYOUT}"
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
