"""`Reader`: reads the shards of a stream one after the other. Each image has one reader, and reading can be resumed.

With R readers, one per worker process, reader r owns the r-th of R equal parts of the list of shards. A shard at the
border of two parts is shared, and its images are dealt to the two readers in fixed proportion. The readers therefore
have equally many images whether there are more shards than readers or fewer, and every image belongs to one reader.
Images without a class, whose label is null or -1, are then left out.

In training, a reader makes pass after pass over its images, each in an order given by (seed, pass, reader). It shuffles
the shards, and the images within chunks of `shuffle` images, which are held in memory undecoded.
"""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from tarfile import TarError
from typing import Any, NamedTuple

import numpy as np
from PIL import Image

from acmix_zoo.data.images import UnreadableImage, load_image
from acmix_zoo.data.sources.path_safety import checked_path
from acmix_zoo.data.sources.stream_source import StreamSplit

SHUFFLE = 1_000
"""Default number of images per chunk; 110 MB per reader for ImageNet."""
_READ_ROWS = 64  # rows that are requested at a time


class ReaderPosition(NamedTuple):
    """Position of a reader in its endless sequence of images.

    Attributes:
        turn: number of the pass.
        shard: index of the current chunk's first shard in the order of this pass.
        row: row of the current chunk's first image in that shard.
        number: number of the current chunk's first image in the pass.
        done: number of images of the chunk that have been read.
    """

    turn: int = 0
    shard: int = 0
    row: int = 0
    number: int = 0
    done: int = 0


class Example(NamedTuple):
    """An image of a stream before it is decoded.

    Attributes:
        value: the value of the image column: bytes, or a dict of bytes and path.
        label: class number.
        shard: number of the shard.
        row: row in the shard.
        name: name for messages.
        turn: number of the pass.
        number: number of the image in the reader's pass, in the order of reading.
        roots: where an image that is referenced by path must be.
    """

    value: Any
    label: int
    shard: int
    row: int
    name: str
    turn: int
    number: int
    roots: tuple[str, ...] = ()

    def image(self) -> Image.Image:
        """Return the image as 8-bit RGB.

        Raises:
            UnreadableImage: the image cannot be read.
        """
        encoded = self.value["bytes"] if isinstance(self.value, dict) else self.value
        if encoded is None and isinstance(self.value, dict) and self.value.get("path"):
            import fsspec  # type: ignore[import-untyped]

            try:  # the file is next to the table, on this machine or on the Hub
                with fsspec.open(checked_path(self.value["path"], self.roots), "rb") as file:
                    encoded = file.read()
            except (OSError, ValueError) as error:
                raise UnreadableImage(f"image {self.name} cannot be read: {error}") from error
        if encoded is None:
            raise UnreadableImage(f"image {self.name} cannot be read: its cell in the table is empty")
        return load_image(bytes(encoded), self.name)


class _Row(NamedTuple):
    """A row of the table that belongs to a reader.

    Attributes:
        shard_index: index of its shard in the order of the pass.
        row: row in the shard.
        value: value of the image column.
        label: value of the class column.
    """

    shard_index: int
    row: int
    value: Any
    label: Any


class _ShardLocation(NamedTuple):
    """Where a shard is.

    Attributes:
        file: index of the file.
        group: number of the row group in the file.
        groups: number of row groups of the file.
    """

    file: int
    group: int
    groups: int


class Reader:
    """One of several readers of a split.

    Args:
        split: the split to read.
        reader: index of this reader.
        readers: number of readers.
        seed: seed of the order of shards and images.
        shuffle: number of images per chunk; 0 to read in the order of the shards.
    """

    def __init__(self, split: StreamSplit, reader: int, readers: int, *, seed: int = 0, shuffle: int = SHUFFLE) -> None:
        self.split, self.reader, self.readers, self.seed, self.shuffle = split, reader, readers, seed, shuffle
        groups = [file.groups for file in split.files]
        self.first_shards = np.cumsum([0, *groups]).tolist()  # the first shard of each file, and the number of shards
        self.shards = self.first_shards[-1] if groups else int(split.table.num_shards)
        # Neighbouring shards may be alike, so the list is shuffled before it is divided among the readers.
        shard_list = np.random.default_rng(seed).permutation(self.shards) if shuffle else np.arange(self.shards)
        first, last = reader * self.shards // readers, ((reader + 1) * self.shards - 1) // readers
        self.part = {int(shard_list[place]): place for place in range(first, last + 1)}  # shard -> place in the list

    def once(self) -> Iterator[Example]:
        """Yield every image of this reader once, in the order of the shards."""
        order = list(self.part)
        for number, row in enumerate(self._rows(order, 0, 0)):
            yield self._example(row, order, turn=0, number=number)

    def endless(self, start: ReaderPosition) -> Iterator[tuple[Example, ReaderPosition]]:
        """Yield images from a position onwards, each with the position after it.

        Raises:
            ValueError: this reader has no image, a shard cannot be read, or a class is unknown.
        """
        turn, shard, row, number, done = start
        while True:
            generator = np.random.default_rng((self.seed, turn, self.reader))
            order = generator.permutation(list(self.part)).tolist()
            rows = self._rows(order, shard, row)
            while chunk := list(islice(rows, self.shuffle)):
                shard, row = chunk[0].shard_index, chunk[0].row
                shuffled = np.random.default_rng((self.seed, turn, self.reader, number)).permutation(len(chunk))
                while done < len(chunk):
                    example = self._example(chunk[shuffled[done]], order, turn, number + done)
                    done += 1
                    yield example, ReaderPosition(turn, shard, row, number, done)
                number, done = number + len(chunk), 0
            if number == 0:
                raise ValueError(
                    f"{self.split.name}: {self.readers} readers (processes × workers) are too many for {self.shards} "
                    f"shards with few images, because reader {self.reader} has none with a class. Lower "
                    "data.num_workers"
                )
            turn, shard, row, number = turn + 1, 0, 0, 0

    def _rows(self, order: list[int], first_shard: int, first_row: int) -> Iterator[_Row]:
        """Yield this reader's rows, starting with `first_row` of the shard at `first_shard` in `order`."""
        for shard_index in range(first_shard, len(order)):
            start = first_row if shard_index == first_shard else 0
            for row, (value, label) in enumerate(self._read_shard(order[shard_index], start), start):
                if self._owns(order[shard_index], row) and self._has_class(label):
                    yield _Row(shard_index, row, value, label)

    def _owns(self, shard: int, row: int) -> bool:
        # Each shard is divided into R parts for R readers, and each reader owns as many parts as there are shards.
        # Multiples of the golden ratio spread rows evenly over the parts, however few rows there are.
        part = (row * 0x9E3779B1 % 2**32) * self.readers >> 32
        return (self.part[shard] * self.readers + part) // self.shards == self.reader

    def _has_class(self, label: Any) -> bool:
        """Return whether an image has a class. Others are left out, as by `TableSource`."""
        return label is not None and (self.split.classes.numbers is not None or label >= 0)

    def _read_shard(self, shard: int, start: int) -> Iterator[tuple[Any, Any]]:
        """Yield image and label of each row of a shard, starting with row `start`."""
        errors = (OSError, ValueError, TarError)  # a local name, which still exists when the interpreter shuts down
        row = start
        try:
            table = self._table(shard)
            # Iterating over the table itself would divide its shards among the loader's workers once more.
            for columns in (table.skip(start) if start else table).iter(batch_size=_READ_ROWS):
                for pair in zip(columns[self.split.image], columns[self.split.label], strict=True):
                    yield pair
                    row += 1
        except errors as error:
            raise ValueError(
                f"{self.split.name}: {self._shard_name(shard)} cannot be read beyond image {row}: {error}. Download it "
                "again"
            ) from error

    def _table(self, shard: int) -> Any:
        """Return the part of the table that is a shard."""
        table = self.split.table
        file, group, groups = self._locate(shard)
        if table.num_shards > 1:
            table = table.shard(num_shards=table.num_shards, index=file, contiguous=False)
        # Only the file's own row groups are listed. Listing those of all files takes as long as reading one of them.
        return table.reshard().shard(num_shards=groups, index=group, contiguous=False) if groups > 1 else table

    def _locate(self, shard: int) -> _ShardLocation:
        if not self.split.files:
            return _ShardLocation(file=shard, group=0, groups=1)
        file = bisect_right(self.first_shards, shard) - 1
        return _ShardLocation(file, shard - self.first_shards[file], self.split.files[file].groups)

    def _shard_name(self, shard: int) -> str:
        if not self.split.files:
            return f"shard {shard}"
        file, group, groups = self._locate(shard)
        return self.split.files[file].name + (f", row group {group}" if groups > 1 else "")

    def _example(self, row: _Row, order: list[int], turn: int, number: int) -> Example:
        split, shard = self.split, order[row.shard_index]
        file = Path(row.value.get("path") or "").name if isinstance(row.value, dict) else ""
        name = f"{split.name}, {self._shard_name(shard)}, image {row.row}{f' ({file})' * bool(file)}"
        numbers = split.classes.numbers
        label = row.label if numbers is None else numbers.get(row.label)
        count = len(split.classes.names)
        if label is None or not 0 <= int(label) < count:
            raise ValueError(f"image {name} has the unknown class {row.label!r}. Expected one of {count} classes")
        return Example(row.value, int(label), shard, row.row, name, turn, number, split.roots)
