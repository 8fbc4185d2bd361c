"""Write a source as a folder of class folders of PNG files."""

from __future__ import annotations

import re
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from PIL import Image

from acmix_zoo.data.sources.base import ArrayImages, Images, Source, open_source


def export_folder(
    source: str | Path | Source, destination: str | Path, *, per_class: Mapping[str, int], seed: int = 0
) -> Path:
    """Write `destination/<split>/<class>/<number>.png`, a seeded draw of `per_class[split]` pictures of each class.

    A split that the source does not have is drawn from its training split; no picture is written twice. The folder
    appears when it is complete.

    Args:
        source: what `open_source` takes, e.g. "digits".
        destination: must not exist yet.
        per_class: pictures a class for each split, e.g. {"train": 10, "test": 100}.
        seed: of the draw.

    Raises:
        FileExistsError: `destination` exists.
        ValueError: a class has fewer pictures than asked for.
    """
    data = source if isinstance(source, Source) else open_source(source)
    destination = Path(destination)
    if destination.exists():
        raise FileExistsError(f"{destination} exists; remove it or choose another destination")
    splits = data.splits()
    random = np.random.default_rng(seed)
    order = {split: random.permutation(len(images)) for split, images in splits.items()}
    taken = dict.fromkeys(splits, 0)  # per split: how many of each class are given away
    destination.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{destination.name}.", dir=destination.parent))
    work.chmod(0o755)
    try:
        for split, count in per_class.items():
            origin = split if split in splits else "train"
            images, start = splits[origin], taken[origin]
            for label, name in enumerate(data.class_names):
                members = order[origin][images.targets[order[origin]] == label]
                if len(members) < start + count:
                    raise ValueError(
                        f"{data.name}: class {name!r} has {len(members)} pictures in {origin}, not {start + count}"
                    )
                folder = work / split / re.sub(r"[^\w. -]", "-", name)
                folder.mkdir(parents=True)
                for index in members[start : start + count]:
                    _picture(images, int(index)).save(folder / f"{index:05d}.png")
            taken[origin] = start + count
        work.rename(destination)
    except BaseException:
        shutil.rmtree(work, ignore_errors=True)
        raise
    return destination


def _picture(images: Images, index: int) -> Image.Image:
    if isinstance(images, ArrayImages) and images.array.shape[1] == 1:
        return Image.fromarray(images.array[index, 0])  # grey stays grey: a third of the bytes
    return images.image(index)
