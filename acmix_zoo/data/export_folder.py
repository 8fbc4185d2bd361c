"""Write images of a data set as PNG files in class folders, for examples and tests."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import ArrayImages, Images
from acmix_zoo.data.sources.open import open_source


def export_folder(
    source: str | Path | IndexedSource, destination: str | Path, *, per_class: Mapping[str, int], seed: int = 0
) -> Path:
    """Write a random sample of images to `destination/<split>/<class>/<number>.png`, and return the folder.

    The images of a split that the source does not have are taken from its training split. No image is written twice.
    The folder is only created when it is complete.

    Args:
        source: a data set, or anything that `open_source` accepts, such as "digits".
        destination: the folder to write. It must not exist.
        per_class: number of images per class for each split, such as {"train": 10, "test": 100}.
        seed: seed of the sample.

    Raises:
        FileExistsError: `destination` exists.
        ValueError: a class has too few images.
    """
    data = source if isinstance(source, IndexedSource) else open_source(source)
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} exists. Remove it, or choose a different destination")
    generator = np.random.default_rng(seed)
    shuffled = {split: generator.permutation(len(images)) for split, images in data.splits.items()}
    used = dict.fromkeys(data.splits, 0)  # for each split of the source, number of images per class written so far
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    work.chmod(0o755)
    try:
        for split, count in per_class.items():
            drawn_from = split if split in data.splits else "train"
            images, order, start = data.splits[drawn_from], shuffled[drawn_from], used[drawn_from]
            for label, name in enumerate(data.class_names):
                members = order[images.targets[order] == label]
                if len(members) < start + count:
                    raise ValueError(
                        f"the class {name!r} of {data.name} has {len(members)} images in {drawn_from}. Expected at "
                        f"least {start + count}. Lower per_class"
                    )
                folder = work / split / re.sub(r"[^\w. -]", "-", name)
                folder.mkdir(parents=True)
                for index in members[start : start + count]:
                    _read_image(images, int(index)).save(folder / f"{index:05d}.png")
            used[drawn_from] = start + count
        work.rename(destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return destination


def _read_image(images: Images, index: int) -> Image.Image:
    if isinstance(images, ArrayImages) and images.array.shape[1] == 1:
        return Image.fromarray(images.array[index, 0])  # a grey image stays grey, which takes a third of the bytes
    return images.image(index)
