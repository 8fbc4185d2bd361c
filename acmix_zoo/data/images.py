"""Read a single image of any supported format as 8-bit RGB, and check whether files are readable."""

from __future__ import annotations

import os
import warnings
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from functools import cache, partial
from io import BytesIO
from itertools import chain
from pathlib import Path
from typing import Any, BinaryIO

import torch
from PIL import Image, ImageOps, UnidentifiedImageError

from acmix_zoo.data.depth import deep_grey, is_dark, sample_bits, warn_of_range
from acmix_zoo.data.formats import content_kind, open_formats


class BadImage(ValueError):
    """A file that should be a picture cannot be read; the message names it and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("BadImage: ")[2].strip())  # a loader's process puts its traceback in front


def load_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB of size (W, H).

    Grey images are repeated over the channels. Samples with more than 8 bits are scaled, as `acmix_zoo.data.depth`
    describes, with one warning that gives the range. Palettes are looked up, transparent images are put on a white
    background, CMYK is converted, the first frame of an animation is used, and a camera's orientation tag is applied.
    HEIC is supported if the package pillow-heif is installed.

    `ACMIX_JPEG=torchvision` has JPEG files decoded by torchvision, where it can: the same pixels, to the bit.

    Args:
        source: path, or the bytes of a file.
        name: what to call it in an error; the path by default.

    Raises:
        BadImage: the file is missing, empty, truncated or corrupt, is not in one of `acmix_zoo.data.formats.FORMATS`,
            is larger than twice `PIL.Image.MAX_IMAGE_PIXELS`, or has pixel values of unknown range.
        ValueError: ACMIX_JPEG is neither "pillow" (the default) nor "torchvision".
    """
    picture, bits = _read(source, name)
    if bits > 8:
        warn_of_range(bits, is_dark(picture))
    return picture


def _read(source: str | Path | bytes, name: str | None = None) -> tuple[Image.Image, int]:
    """Return the image as 8-bit RGB, and the number of bits per sample in its file."""
    decoder = os.environ.get("ACMIX_JPEG", "pillow")
    if decoder not in ("pillow", "torchvision"):
        raise ValueError(f"ACMIX_JPEG={decoder!r} is set; expected pillow or torchvision")
    label = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large pictures are welcome
            with Image.open(
                BytesIO(source) if isinstance(source, bytes) else source, formats=open_formats()
            ) as picture:
                bits = sample_bits(picture)
                loaded = _by_torchvision(picture) if decoder == "torchvision" else None
                if loaded is None:
                    picture.load()
                    loaded = picture
                ImageOps.exif_transpose(loaded, in_place=True)  # of a large picture a copy costs as much as decoding
                if loaded.mode == "RGB" and not loaded.has_transparency_data:
                    return loaded, bits
                return _to_rgb(loaded, bits), bits
    except FileNotFoundError:
        raise BadImage(f"image {label} does not exist") from None
    except Exception as error:  # broken bytes raise OSError, SyntaxError, struct.error, … by format
        if isinstance(error, MemoryError):
            raise
        raise BadImage(f"image {label} cannot be read: {_reason(error, source)}") from error


def _reason(error: Exception, source: str | Path | bytes) -> str:
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"it has more than {limit:.0f} million pixels and may not fit into memory. Expected a smaller image; scale "
            "it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )
    # Ultralytics replaces Image.open by a function that imports another package for files unknown to Pillow.
    if not isinstance(error, UnidentifiedImageError | ImportError):
        return str(error) or type(error).__name__
    if isinstance(source, bytes):
        return f"it is {content_kind(source[:64])}"
    with open(source, "rb") as file:
        return f"it is {content_kind(file.read(64), str(source))}"


@cache
def _torchvision_decoder() -> Any:
    """torchvision's decode_jpeg, or None: a build without it, or a release after its removal (deprecated in 0.29)."""
    try:
        from torchvision.io import decode_jpeg

        if hasattr(torch.ops.image, "decode_jpeg"):
            return decode_jpeg
    except ImportError:
        pass
    warnings.warn("ACMIX_JPEG=torchvision: this torchvision does not decode JPEG, Pillow does it", stacklevel=4)
    return None


def _by_torchvision(picture: Image.Image) -> Image.Image | None:
    """The pixels of a colour JPEG that Pillow has opened but not loaded; None: Pillow is to load it, or to say what is
    wrong with it.

    Not the default, because it does not pay with Pillow's own wheel, which has the fast libjpeg too. Pillow 13.0 and
    torchvision 0.29.1, one thread of an EPYC, photographs of quality 90 with halved colour, ms each, medians:

    | size | Pillow, into a picture | torchvision, into a tensor | … and on into a picture | Pillow, at half size |
    |---|---|---|---|---|
    | 500×375 | 0.98 | 0.79 | 1.13 | 0.68 |
    | 1024×768 | 3.10 | 2.59 | 3.48 | 1.88 |
    | 2560×1440 | 10.8 | 9.2 | 12.8 | 7.1 |

    timm's transforms want pictures. On tensors its resize and crop take as long, and differ by up to 7 of 255.
    """
    decode = _torchvision_decoder()
    if decode is None or picture.format != "JPEG" or picture.mode != "RGB":
        return None
    file: Any = picture.fp  # type: ignore[attr-defined]
    file.seek(0)
    try:
        pixels = decode(torch.frombuffer(bytearray(file.read()), dtype=torch.uint8), "RGB")  # (3, H, W)
    except RuntimeError:
        return None
    decoded = Image.fromarray(pixels.permute(1, 2, 0).numpy())  # (H, W, 3), as it lies in memory
    decoded.info.update(picture.info)  # the orientation
    return decoded


def _to_rgb(picture: Image.Image, bits: int) -> Image.Image:
    if picture.mode.startswith("I"):  # I;16 and its variants, or I: 32-bit integers, whose samples may use fewer bits
        return deep_grey(picture, bits)
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


@dataclass
class Inspection:
    """Result of checking image files before they are used.

    Attributes:
        count: number of files that were checked.
        problems: one message for each file that cannot be read.
        unreadable: the paths of these files.
        depths: number of images for each number of bits per sample above 8.
        dark: number of these images that are almost black after scaling.
    """

    count: int = 0
    problems: list[str] = field(default_factory=list)
    unreadable: list[str] = field(default_factory=list)
    depths: Counter[int] = field(default_factory=Counter)
    dark: int = 0


def inspect_images(paths: Sequence[str], thorough: bool = False) -> Inspection:
    """Find files that cannot be read, and images with more than 8 bits per sample.

    This is cheap for JPEG and 8-bit PNG: only the header and the end marker are checked, and files that fail this
    check are decoded. Damage in the middle of a file is therefore only found when the file is first used.

    Args:
        thorough: decode every file to find all damage.
    """
    found = Inspection(len(paths))
    with ThreadPoolExecutor(max_workers=8) as pool:  # decoding and disk access release the GIL
        chunks = [paths[start : start + 64] for start in range(0, len(paths), 64)]
        results = chain.from_iterable(pool.map(partial(_inspect_some, thorough), chunks))
        for path, (problem, bits, dark) in zip(paths, results, strict=True):
            if problem:
                found.problems.append(problem)
                found.unreadable.append(path)
            elif bits > 8:
                found.depths[bits] += 1
                found.dark += dark
    return found


def bad_images(paths: Iterable[str]) -> list[str]:
    """Return one message for each file that `inspect_images` finds unreadable; [] if there is none."""
    return inspect_images(list(paths)).problems


def _inspect_some(thorough: bool, paths: Sequence[str]) -> list[tuple[str, int, bool]]:
    return [_inspect(path, thorough) for path in paths]


def _inspect(path: str, thorough: bool) -> tuple[str, int, bool]:
    """Return what is wrong with a file, its bits per sample, and whether it is almost black after scaling."""
    if not thorough and _looks_whole(path):
        return "", 8, False
    try:
        picture, bits = _read(path)
    except BadImage as error:
        return str(error), 8, False
    return "", bits, bits > 8 and is_dark(picture)


_MANY_PIXELS = 2**26  # larger images are opened with Pillow, which enforces its limit


def _looks_whole(path: str) -> bool:
    """Return whether a file has the header and end marker of a JPEG, or of a PNG with at most 8 bits per sample."""
    try:
        with open(path, "rb") as file:
            head = file.read(26)
            pixels = 0
            if head.startswith(b"\xff\xd8\xff"):
                pixels = _jpeg_pixels(file)
            elif head.startswith(b"\x89PNG\r\n\x1a\n") and head[12:16] == b"IHDR" and head[24] <= 8:
                pixels = int.from_bytes(head[16:20]) * int.from_bytes(head[20:24])
            file.seek(-12, os.SEEK_END)
            tail = file.read()
    except (OSError, IndexError):  # missing or too short: the full reader reports it
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
