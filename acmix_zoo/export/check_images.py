"""The images with which an export is checked: those of a data set, of a folder, or the sample input of the weights."""

from __future__ import annotations

import glob
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import safetensors.torch
import torch
from PIL import Image

from acmix_zoo.data.formats import is_image_name
from acmix_zoo.data.image_loading import ImageTransform, load_batches
from acmix_zoo.data.images import load_image
from acmix_zoo.data.predict_images import find_images_in
from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.open import open_source
from acmix_zoo.data.sources.shards import has_class_folders
from acmix_zoo.data.splits import Split, split_source
from acmix_zoo.data.wording import count_noun, first_few
from acmix_zoo.export.agreement import CheckBatch

_BATCH = 32
_CALIBRATION_IMAGES = 256


@dataclass(frozen=True)
class CheckImages:
    """Images that have not been read yet.

    Attributes:
        description: where they come from, for messages.
        readers: for each image, a function that reads it.
        targets: (N,) int64, for each image the index of its class among those of the network; -1 if it is unknown.
        calibration: functions that read the images on which the ranges of a quantised network are measured. They are
            training images if there are any, so that the accuracy is measured on other images.
    """

    description: str
    readers: Sequence[Callable[[], Image.Image]]
    targets: np.ndarray
    calibration: Sequence[Callable[[], Image.Image]]

    def batches(self, transform: ImageTransform) -> Iterator[CheckBatch]:
        """Yield the readable images in batches."""
        for batch in load_batches(self.readers, transform, _BATCH):
            if batch.numbers:
                yield CheckBatch(batch.images, torch.from_numpy(self.targets[batch.numbers]))

    def calibration_batches(self, transform: ImageTransform) -> Iterator[np.ndarray]:
        """Yield the images for calibration as arrays (B, C, H, W) float32."""
        for batch in load_batches(self.calibration, transform, _BATCH):
            if batch.numbers:
                yield batch.images.numpy()


def open_check_images(location: str, class_names: Sequence[str], limit: int) -> CheckImages:
    """Return the images of a data set with their classes, or those of a folder, file or pattern without.

    From a data set, the images are those of its test split or else of its validation split.

    Args:
        location: a data source as for `open_source`, an image, a folder that directly contains images, or a pattern.
        class_names: the names of the network's classes.
        limit: largest number of images. If there are more, every n-th one is used.

    Raises:
        FileNotFoundError: nothing has this name.
        ValueError: there are no images, or a class of the data set is not one of the network's.
    """
    if _is_unlabelled(location):
        paths = find_images_in(location).paths
        readers = [partial(load_image, paths[i]) for i in _spread(len(paths), limit)]
        calibration = [partial(load_image, paths[i]) for i in _spread(len(paths), _CALIBRATION_IMAGES)]
        return CheckImages(location, readers, np.full(len(readers), -1), calibration)
    source = open_source(location)
    indices = _class_indices(source, class_names, location)
    splits = split_source(source)
    name = next(name for name in ("test", "val", "train") if name in splits)
    split, train = splits[name], splits.get("train", splits[name])
    chosen = split.indices[_spread(split.size, limit)]
    for_calibration = train.indices[_spread(train.size, _CALIBRATION_IMAGES)]
    return CheckImages(
        f"the {name} split of {location}", _readers(split, chosen), indices[split.images.targets[chosen]],
        _readers(train, for_calibration),
    )  # fmt: skip


def sample_input(folder: Path | None, input_size: Sequence[int]) -> tuple[str, CheckBatch]:
    """Return a description and the sample input of a weight folder, or noise if there is none.

    Args:
        folder: the weight folder, or None.
        input_size: (C, H, W).
    """
    file = folder / "test" / "example.safetensors" if folder else None
    if file is not None and file.is_file():
        images = safetensors.torch.load_file(file)["input"]
        description = f"the {count_noun(len(images), 'sample image')} of the weights"
    else:
        images = torch.randn(4, *input_size, generator=torch.Generator().manual_seed(0))
        description = "random numbers, because there are no images (see --data)"
    return description, CheckBatch(images, torch.full((len(images),), -1))


def _is_unlabelled(location: str) -> bool:
    """Return whether a location is an image, a pattern, or a folder that directly contains images."""
    path = Path(location).expanduser()
    if path.is_dir():
        return not has_class_folders(path) and any(
            is_image_name(entry.name) for entry in path.iterdir() if entry.is_file()
        )
    return is_image_name(path.name) or (not path.exists() and glob.has_magic(location))


def _class_indices(source: IndexedSource, class_names: Sequence[str], location: str) -> np.ndarray:
    """Return for each class of a data set its index among the classes of the network."""
    unknown = [name for name in source.class_names if name not in class_names]
    if unknown:
        raise ValueError(
            f"{location} has classes that the network does not know: {first_few(unknown)}. Expected its own classes, "
            f"{first_few(list(class_names))}. Use images of these classes, or a folder that directly contains images"
        )
    return np.array([list(class_names).index(name) for name in source.class_names], dtype=np.int64)


def _readers(split: Split, indices: np.ndarray) -> list[Callable[[], Image.Image]]:
    return [partial(split.images.image, int(index)) for index in indices]


def _spread(count: int, limit: int) -> np.ndarray:
    """Return up to `limit` evenly spaced numbers below `count`."""
    if count <= limit:
        return np.arange(count)
    return np.linspace(0, count - 1, limit).round().astype(np.int64)
