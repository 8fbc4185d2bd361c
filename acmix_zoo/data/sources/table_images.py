"""`TableImages`: the images of one split of a table, stored in it or in files that it names."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from acmix_zoo.data.images import UnreadableImage, image_size, load_image
from acmix_zoo.data.inspection import Inspection, inspect_cells
from acmix_zoo.data.sources.image_sets import DECODE_LIMIT, Images
from acmix_zoo.data.sources.path_safety import checked_path


class TableImages(Images):
    """Images of one split of a table.

    Args:
        table: a `datasets.Dataset`.
        column: the image column. Each value has the bytes of an image file, or its path.
        targets: (N,) int64.
        name: name of the split for messages.
        roots: the folders below which files named by path must be.

    Raises:
        ValueError: a path is outside of `roots`.
    """

    def __init__(self, table: Any, column: str, targets: np.ndarray, name: str, roots: tuple[str, ...]) -> None:
        import datasets

        self.table = table.select_columns(column).cast_column(column, datasets.Image(decode=False))
        self.column, self.targets, self.name, self.roots = column, targets, name, roots
        for chunk in self.table.data.column(column).chunks:  # check all paths before the first training step
            encoded, paths = chunk.field("bytes"), chunk.field("path")
            if encoded.null_count:
                for path in paths.filter(encoded.is_null()).drop_null().to_pylist():
                    checked_path(path, roots)

    def image(self, index: int) -> Image.Image:
        try:
            encoded = self.encoded_image(index)
        except OSError as error:  # a file next to the table that no longer exists
            raise UnreadableImage(f"image {self.describe(index)} cannot be read: {error}") from error
        return load_image(encoded, self.describe(index))

    def describe(self, index: int) -> str:
        return f"{self.name}[{index}]"

    def encoded_image(self, index: int) -> bytes:
        """Return the bytes of an image file. All sources decode with `load_image`, so that all formats agree."""
        cell = self._cell(index)
        return cell if isinstance(cell, bytes) else Path(cell).read_bytes()

    def header_size(self, index: int) -> tuple[int, int] | None:
        """Return the (width, height) of an image, or None if it cannot be read."""
        try:
            return image_size(self.encoded_image(index))
        except (OSError, UnreadableImage):
            return None

    def _cell(self, index: int) -> bytes | str:
        """Return the bytes of an image file, or its path if it is not in the table."""
        value = self.table[index][self.column] or {}
        if value.get("bytes") is not None:
            return bytes(value["bytes"])
        if not value.get("path"):
            raise UnreadableImage(f"image {self.describe(index)} cannot be read: its cell in the table is empty")
        return str(checked_path(value["path"], self.roots))

    def fingerprint_parts(self) -> Iterator[bytes]:
        """Yield the bytes of up to 64 images, and none for one that cannot be read."""
        for index in np.linspace(0, len(self) - 1, num=min(64, len(self)), dtype=int).tolist():
            try:
                yield self.encoded_image(index)
            except (OSError, UnreadableImage):
                yield b""

    def inspect(self, indices: Sequence[int], thorough: bool = False) -> Inspection:
        """Decode every image if `thorough`. Otherwise, only check that each looks complete."""
        if len(indices) > DECODE_LIMIT:
            return Inspection()
        numbers = [int(index) for index in indices]
        return inspect_cells([self.describe(n) for n in numbers], lambda i: self._cell(numbers[i]), thorough)
