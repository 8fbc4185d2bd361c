"""Read images in threads and put them into batches, for programs that do not need a data module and its workers."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from PIL import Image
from timm.data import create_transform, resolve_data_config
from torch import Tensor

from acmix_zoo.data.images import UnreadableImage

ImageTransform = Callable[[Image.Image], Tensor]


class LoadedBatch(NamedTuple):
    """A batch of images, without those that cannot be read.

    Attributes:
        images: (B, C, H, W) float32. B is 0 if no image can be read.
        numbers: for each of them, its position in the sequence of images.
        problems: for each image that cannot be read, its position and the reason.
    """

    images: Tensor
    numbers: list[int]
    problems: dict[int, UnreadableImage]


def evaluation_transform(cfg: Mapping[str, Any]) -> ImageTransform:
    """Return the function that turns a PIL image into a network's input (C, H, W).

    Args:
        cfg: timm's pretrained_cfg of the network, which states the size, crop and normalisation.

    Raises:
        ValueError: the network takes neither 1 nor 3 channels.
    """
    transform: ImageTransform = create_transform(**resolve_data_config(pretrained_cfg=dict(cfg)))
    channels = (cfg.get("input_size") or (3,))[0]
    if channels not in (1, 3):
        raise ValueError(
            f"the network takes {channels} channels, but image files are grey or RGB (1 or 3). Prepare its input in "
            "Python"
        )
    return transform if channels == 3 else lambda image: transform(image.convert("L"))


def load_batches(
    readers: Sequence[Callable[[], Image.Image]], transform: ImageTransform, batch_size: int
) -> Iterator[LoadedBatch]:
    """Yield all images in batches. The next batch is read while the caller processes the current one.

    Args:
        readers: for each image, a function that reads it.
        transform: turns an image into the input of a network, (C, H, W).
        batch_size: number of images per batch.
    """

    def load(number: int) -> Tensor | UnreadableImage:
        try:
            return transform(readers[number]())
        except UnreadableImage as error:
            return error

    chunks = [range(start, min(start + batch_size, len(readers))) for start in range(0, len(readers), batch_size)]
    with ThreadPoolExecutor(max_workers=8) as pool:  # decoding releases the GIL
        waiting: list[Future[Tensor | UnreadableImage]] = []
        for chunk, following in pairwise([*chunks, range(0)]):
            current = waiting or [pool.submit(load, number) for number in chunk]
            waiting = [pool.submit(load, number) for number in following]
            results = [future.result() for future in current]
            loaded = {n: r for n, r in zip(chunk, results, strict=True) if isinstance(r, Tensor)}
            problems = {n: r for n, r in zip(chunk, results, strict=True) if isinstance(r, UnreadableImage)}
            images = torch.stack(list(loaded.values())) if loaded else torch.empty(0)  # (B, C, H, W)
            yield LoadedBatch(images, list(loaded), problems)
