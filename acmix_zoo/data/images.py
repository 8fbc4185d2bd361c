"""One picture: finding the files, telling good ones from broken ones, reading any kind as 8-bit RGB."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from io import BytesIO
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError

EXTENSIONS = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp"})


class BadImage(ValueError):
    """A file that should be a picture cannot be read; the message names it and the reason."""

    def __init__(self, message: str) -> None:
        super().__init__(message.rpartition("BadImage: ")[2].strip())  # a loader's process puts its traceback in front


def is_image_name(name: str) -> bool:
    """True when the name ends like a picture's and is not hidden."""
    return not name.startswith(".") and os.path.splitext(name)[1].lower() in EXTENSIONS


def find_images(folder: str | Path) -> list[str]:
    """Paths of all pictures below `folder`, sorted; other files and all hidden ones are passed over."""
    found: list[str] = []
    for root, folders, files in os.walk(folder, followlinks=True):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        found += [os.path.join(root, name) for name in files if is_image_name(name)]
    return sorted(found)


def load_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Read a picture as 8-bit RGB of size (W, H).

    Grey is repeated, 16-bit grey keeps its upper eight bits, palettes are looked up, transparency is laid on white,
    CMYK is converted, the first frame of an animation is taken, and a camera's orientation tag is applied.

    `ACMIX_JPEG=torchvision` has JPEG files decoded by torchvision, where it can: the same pixels, to the bit.

    Args:
        source: path, or the bytes of a file.
        name: what to call it in an error; the path by default.

    Raises:
        BadImage: missing, empty, truncated, corrupt, not a picture, or floating point without a known range.
        ValueError: ACMIX_JPEG is neither "pillow" (the default) nor "torchvision".
    """
    decoder = os.environ.get("ACMIX_JPEG", "pillow")
    if decoder not in ("pillow", "torchvision"):
        raise ValueError(f"ACMIX_JPEG={decoder!r} is set; expected pillow or torchvision")
    label = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large pictures are welcome
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source) as picture:
                loaded = _by_torchvision(picture) if decoder == "torchvision" else None
                if loaded is None:
                    picture.load()
                    loaded = picture
                ImageOps.exif_transpose(loaded, in_place=True)  # of a large picture a copy costs as much as decoding
                return loaded if loaded.mode == "RGB" and not loaded.has_transparency_data else _to_rgb(loaded)
    except FileNotFoundError:
        raise BadImage(f"image {label} does not exist") from None
    except Exception as error:  # broken bytes raise OSError, SyntaxError, struct.error, … by format
        if isinstance(error, MemoryError):
            raise
        reason = "not a picture, or empty" if isinstance(error, UnidentifiedImageError) else error
        raise BadImage(f"image {label} cannot be read: {reason}") from error


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


def _to_rgb(picture: Image.Image) -> Image.Image:
    if picture.mode.startswith("I"):  # I;16 and relatives, or I: 32-bit words, which hold 16-bit pictures
        values = np.asarray(picture).astype(np.int64)
        grey = (np.clip(values, 0, 65535) >> 8).astype(np.uint8)
        return Image.fromarray(grey).convert("RGB")
    if picture.mode == "F":
        raise BadImage("floating point pixels have no agreed range; save the picture with 8 or 16 bits")
    if picture.has_transparency_data:
        rgba = picture.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return picture.convert("RGB")


def bad_images(paths: Iterable[str]) -> list[str]:
    """What is wrong with which files, one message a bad file; [] when all are good.

    Cheap for JPEG and PNG: the header is parsed and the end marker looked for, and only a file that fails is decoded.
    Damage in the middle of a file is therefore found when the file is first used.
    """
    with ThreadPoolExecutor(max_workers=8) as pool:  # the time goes into opening files
        return [message for message in pool.map(_problem, paths) if message]


def _problem(path: str) -> str:
    try:
        with open(path, "rb") as file, Image.open(file) as picture:
            kind = picture.format
            file.seek(max(0, os.path.getsize(path) - 12))
            tail = file.read()
        if (kind == "JPEG" and tail.endswith(b"\xff\xd9")) or (kind == "PNG" and tail[4:8] == b"IEND"):
            return ""
    except Exception:  # whatever it was, the full reader below finds the words for it
        pass
    try:
        load_image(path)
    except BadImage as error:
        return str(error)
    return ""
