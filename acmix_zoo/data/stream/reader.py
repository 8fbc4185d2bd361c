"""A data set as a stream: shards are read one after the other, each image by one reader, and the place can be kept.

R readers, one a worker process, share the images: reader r has the r-th of R equal stretches of the row of shards. Most
of its shards are its own; one at the border is shared, its images being dealt in fixed proportion. So readers have
equally much whether there are more shards than readers or fewer, and every image belongs to just one of them.

A reader's images have no end: pass after pass, each in an order given by (seed, pass, reader). Shards are shuffled, and
images within chunks of `shuffle` of them, which is as many as are held in memory, undecoded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from acmix_zoo.data.images import BadImage, load_image
from acmix_zoo.data.sources.paths import checked_path

SHUFFLE = 1_000  # images of ImageNet: 110 MB a reader
READ = 64  # rows asked for at a time


@dataclass(frozen=True)
class Streamed:
    """One split of a stream.

    Attributes:
        name: for messages. table: `datasets.IterableDataset` with the columns `image`, undecoded, and `label`.
        classes: the class number of each value of the label column; None when it holds numbers of classes.
        class_count: how many classes there are.
        pieces: the table's files by name, each with the number of row groups, which then are the shards; empty if they
            are not known, and the files are the shards.
        size: images; None if it is not known.
        roots: where images that the table references by path must be, see `acmix_zoo.data.sources.paths`.
    """

    name: str
    table: Any
    image: str
    label: str
    classes: dict[Any, int] | None
    class_count: int
    pieces: list[tuple[str, int]]
    size: int | None
    roots: tuple[str, ...] = ()


class Place(NamedTuple):
    """Where a reader stands: `done` images are given of the chunk that begins with `row` of the `shard`-th shard in the
    order of pass number `turn`, and whose first image is number `number` of the pass."""

    turn: int = 0
    shard: int = 0
    row: int = 0
    number: int = 0
    done: int = 0


class Example(NamedTuple):
    """An image before it is decoded; `number` counts the reader's images in the pass, in the order they come."""

    value: Any
    label: int
    shard: int
    row: int
    name: str
    turn: int
    number: int
    roots: tuple[str, ...] = ()

    def image(self) -> Image.Image:
        """The picture, 8-bit RGB.

        Raises:
            BadImage: it cannot be read.
        """
        encoded = self.value["bytes"] if isinstance(self.value, dict) else self.value
        if encoded is None and isinstance(self.value, dict) and self.value.get("path"):
            import fsspec  # type: ignore[import-untyped]

            try:  # stored next to the table, on this machine or on the Hub
                with fsspec.open(checked_path(self.value["path"], self.roots), "rb") as file:
                    encoded = file.read()
            except (OSError, ValueError) as error:
                raise BadImage(f"image {self.name} cannot be read: {error}") from error
        if encoded is None:
            raise BadImage(f"image {self.name} cannot be read: its cell in the table is empty")
        return load_image(bytes(encoded), self.name)


class Reader:
    """Reader number `reader` of `readers`.

    Args:
        split: what to read.
        seed: of all orders. shuffle: images a chunk; 0 to read in the order of the shards.
    """

    def __init__(self, split: Streamed, reader: int, readers: int, *, seed: int = 0, shuffle: int = SHUFFLE) -> None:
        self.split, self.reader, self.readers, self.seed, self.shuffle = split, reader, readers, seed, shuffle
        groups = [count for _, count in split.pieces]
        self.starts = np.cumsum([0, *groups]).tolist()  # the first shard of each file, and the end
        self.shards = self.starts[-1] if groups else int(split.table.num_shards)
        # shards that lie side by side may be alike
        row = np.random.default_rng(seed).permutation(self.shards) if shuffle else np.arange(self.shards)
        first, last = reader * self.shards // readers, ((reader + 1) * self.shards - 1) // readers
        self.stretch = {int(row[place]): place for place in range(first, last + 1)}  # shard -> its place in the row

    def once(self) -> Iterator[Example]:
        """Every image of this reader once, in the order of the shards."""
        order = list(self.stretch)
        for number, (place, row, value, label) in enumerate(self._rows(order, 0, 0)):
            yield self._example(order[place], row, value, label, 0, number)

    def endless(self, place: Place) -> Iterator[tuple[Example, Place]]:
        """Images from `place` on, each with the place after it.

        Raises:
            ValueError: this reader has no image, a shard cannot be read, or a class is none.
        """
        turn, shard, row, number, done = place
        while True:
            order = np.random.default_rng((self.seed, turn, self.reader)).permutation(list(self.stretch)).tolist()
            rows = self._rows(order, shard, row)
            while chunk := list(islice(rows, self.shuffle)):
                shard, row = chunk[0][:2]
                mixed = np.random.default_rng((self.seed, turn, self.reader, number)).permutation(len(chunk))
                while done < len(chunk):
                    at, its_row, value, label = chunk[mixed[done]]
                    example = self._example(order[at], its_row, value, label, turn, number + done)
                    done += 1
                    yield example, Place(turn, shard, row, number, done)
                number, done = number + len(chunk), 0
            if number == 0:
                raise ValueError(
                    f"{self.split.name}: {self.readers} readers (processes × workers) are too many for "
                    f"{self.shards} shards and so few images: number {self.reader} has none; set num_workers lower"
                )
            turn, shard, row, number = turn + 1, 0, 0, 0

    def _rows(self, order: list[int], shard: int, row: int) -> Iterator[tuple[int, int, Any, Any]]:
        """This reader's images from `row` of the `shard`-th in `order` on: place in `order`, row, image, label."""
        for place in range(shard, len(order)):
            start = row if place == shard else 0
            for number, (value, label) in enumerate(self._shard(order[place], start), start):
                if self._owns(order[place], number):
                    yield place, number, value, label

    def _owns(self, shard: int, row: int) -> bool:
        # a shard has R parts, a reader as many as there are shards. Multiples of the golden ratio are spread evenly
        # over the parts, however few rows there are
        part = (row * 0x9E3779B1 % 2**32) * self.readers >> 32
        return (self.stretch[shard] * self.readers + part) // self.shards == self.reader

    def _shard(self, shard: int, start: int) -> Iterator[tuple[Any, Any]]:
        errors = (OSError, ValueError, TarError)  # a name of its own: still there when the interpreter shuts down
        row = start
        try:
            table = self._table(shard)
            # not iter(table), which would deal its shards to the loader's workers once more
            for columns in (table.skip(start) if start else table).iter(batch_size=READ):
                for pair in zip(columns[self.split.image], columns[self.split.label], strict=True):
                    yield pair
                    row += 1
        except errors as error:
            raise ValueError(
                f"{self.split.name}: {self._piece(shard)} cannot be read beyond image {row}: {error}; fetch it again"
            ) from error

    def _table(self, shard: int) -> Any:
        table = self.split.table
        file, group, groups = self._place(shard)
        if table.num_shards > 1:
            table = table.shard(num_shards=table.num_shards, index=file, contiguous=False)
        # of one file only: to list the row groups of all takes as long as to read one of them
        return table.reshard().shard(num_shards=groups, index=group, contiguous=False) if groups > 1 else table

    def _place(self, shard: int) -> tuple[int, int, int]:
        """File, row group in it, and how many it has."""
        if not self.split.pieces:
            return shard, 0, 1
        file = bisect_right(self.starts, shard) - 1
        return file, shard - self.starts[file], self.split.pieces[file][1]

    def _piece(self, shard: int) -> str:
        if not self.split.pieces:
            return f"shard {shard}"
        file, group, groups = self._place(shard)
        return self.split.pieces[file][0] + (f", row group {group}" if groups > 1 else "")

    def _example(self, shard: int, row: int, value: Any, label: Any, turn: int, number: int) -> Example:
        path = Path(value.get("path") or "").name if isinstance(value, dict) else ""
        name = f"{self.split.name}, {self._piece(shard)}, image {row}{f' ({path})' * bool(path)}"
        classes = self.split.classes
        wanted = label if classes is None else classes.get(label)
        if wanted is None or not 0 <= int(wanted) < self.split.class_count:
            raise ValueError(
                f"image {name} has the class {label!r}, which is none of the {self.split.class_count} of training"
            )
        return Example(value, int(wanted), shard, row, name, turn, number, self.split.roots)
