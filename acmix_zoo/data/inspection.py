"""Check image files before a run: which cannot be read, and which have more than 8 bits per sample."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from io import BytesIO
from itertools import chain
from typing import BinaryIO, NamedTuple

import numpy as np

from acmix_zoo.data.bit_depth import is_dark
from acmix_zoo.data.images import UnreadableImage, load_with_bits


@dataclass
class Inspection:
    """Result of checking image files before they are used.

    Attributes:
        count: number of files that were checked.
        problems: one message for each file that cannot be read.
        unreadable: the paths of these files.
        depths: number of images for each number of bits per sample above 8.
        dark: number of these images that are almost black after scaling.
        class_pixels: (classes + 1,) int64, the number of pixels of each class, and then of those without a class; None
            for images without masks.
    """

    count: int = 0
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    depths: Counter[int] = field(default_factory=Counter)
    dark: int = 0
    class_pixels: np.ndarray | None = None


class _Finding(NamedTuple):
    """Result of checking one file.

    Attributes:
        problem: why it cannot be read; "" if it can be.
        bits: number of bits per sample.
        dark: whether it has more than 8 bits per sample and is almost black after scaling.
    """

    problem: str = ""
    bits: int = 8
    dark: bool = False


def inspect_images(paths: Sequence[str], thorough: bool = False) -> Inspection:
    """Find files that cannot be read, and images with more than 8 bits per sample.

    This is cheap for JPEG and 8-bit PNG: only the header and the end marker are checked, and files that fail this
    check are decoded. Damage in the middle of a file is therefore only found when the file is first used.

    Args:
        thorough: decode every file to find all damage.
    """

    def find(number: int) -> _Finding:
        if not thorough and _looks_complete(paths[number]):
            return _Finding()
        return _decode(paths[number], paths[number])

    return _collect(paths, find)


def inspect_cells(names: Sequence[str], read: Callable[[int], bytes | str], thorough: bool) -> Inspection:
    """Check the images of a table, as `inspect_images` does for files.

    Args:
        names: the names of the images.
        read: returns the bytes of an image file, or its path, given its position in `names`.
        thorough: decode every image. Otherwise, they are checked as by `inspect_images`.
    """

    def find(number: int) -> _Finding:
        try:
            source = read(number)
        except UnreadableImage as error:
            return _Finding(problem=str(error))
        if not thorough and _looks_complete(source):
            return _Finding()
        return _decode(source, names[number])

    return _collect(names, find)


def _collect(names: Sequence[str], find: Callable[[int], _Finding]) -> Inspection:
    """Return what `find` returns for the position of each image."""
    result = Inspection(len(names))
    with ThreadPoolExecutor(max_workers=8) as pool:  # decoding and disk access release the GIL
        chunks = [range(start, min(start + 64, len(names))) for start in range(0, len(names), 64)]
        findings = chain.from_iterable(pool.map(lambda chunk: [find(number) for number in chunk], chunks))
        for name, finding in zip(names, findings, strict=True):
            if finding.problem:
                result.problems.append(finding.problem)
                result.unreadable.append(name)
            elif finding.bits > 8:
                result.depths[finding.bits] += 1
                result.dark += finding.dark
    return result


def _decode(source: str | bytes, name: str) -> _Finding:
    try:
        image, bits = load_with_bits(source, name)
    except UnreadableImage as error:
        return _Finding(problem=str(error))
    return _Finding(bits=bits, dark=bits > 8 and is_dark(image))


_MANY_PIXELS = 2**26  # larger images are opened with Pillow, which enforces its limit


def _looks_complete(source: str | bytes) -> bool:
    """Return whether a file has the header and end marker of a JPEG, or of a PNG with at most 8 bits per sample."""
    try:
        with BytesIO(source) if isinstance(source, bytes) else open(source, "rb") as file:
            head = file.read(26)
            pixels = 0
            if head.startswith(b"\xff\xd8\xff"):
                pixels = _jpeg_pixels(file)
            elif head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and head[24] <= 8:
                pixels = int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
            file.seek(-12, os.SEEK_END)
            tail = file.read()
    except (OSError, ValueError, IndexError):  # missing or too short, which decoding reports
        return False
    return 0 < pixels < _MANY_PIXELS and (tail.endswith(b"\xff\xd9") or tail[4:8] == b"IEND")


def _jpeg_pixels(file: BinaryIO) -> int:
    """Return width × height from the frame header of a JPEG; 0 if there is none."""
    file.seek(2)
    while (segment := file.read(4))[:1] == b"\xff" and len(segment) == 4:
        kind, length = segment[1], int.from_bytes(segment[2:])
        if 0xC0 <= kind <= 0xCF and kind not in (0xC4, 0xC8, 0xCC):
            frame = file.read(5)  # precision, height, width
            return int.from_bytes(frame[1:3]) * int.from_bytes(frame[3:5]) if frame[:1] == b"\x08" else 0
        file.seek(length - 2, os.SEEK_CUR)
    return 0
