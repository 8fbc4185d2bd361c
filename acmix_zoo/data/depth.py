"""Images of more than 8 bits per sample: which range of values is taken as black to white.

The range follows from what the file declares, never from the values that one image happens to hold, so that the same
value is the same grey in every image, in training as in prediction:

| file | range |
|---|---|
| PNG, 16 bits | 0 to 65535, which the PNG specification demands whatever its sBIT chunk says |
| PGM, JPEG 2000 | 0 to the maximum that the header states (Pillow scales it) |
| TIFF, 12 or 16 bits, unsigned | 0 to 2^bits − 1, or MaxSampleValue if the file has that tag and it is some 2^n − 1 |
| TIFF, signed or 32 bits | 0 to MaxSampleValue likewise; refused without it, as floating point is |

MaxSampleValue is otherwise ignored: by the TIFF specification it may be the maximum of the one image.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_BITS, _FORMAT, _MAXIMUM = 258, 339, 281  # TIFF tags: BitsPerSample, SampleFormat, MaxSampleValue


class UnknownRange(ValueError):
    """The file does not say which of its values is white."""


def sample_bits(picture: Image.Image) -> int:
    """Return for how many bits the samples of an opened image are scaled: 8 for an ordinary one.

    Raises:
        UnknownRange: floating point, signed, or 32 bits, and no maximum is declared.
    """
    tags: Any = getattr(picture, "tag_v2", None)
    if picture.mode == "F":
        raise UnknownRange("floating-point pixels have no agreed range. Save the image with 8 or 16 bits")
    if picture.format != "TIFF" or not tags:
        deep = picture.mode.startswith("I") or (picture.format in ("PNG", "SGI") and "16" in _raw_mode(picture))
        return 16 if deep else 8
    bits, is_signed = _first(tags, _BITS, 1), _first(tags, _FORMAT, 1) == 2
    if bits < 8 or (bits == 8 and not is_signed):
        return 8
    maximum = _first(tags, _MAXIMUM, 0)
    declared = maximum.bit_length() if maximum & (maximum + 1) == 0 and 8 <= maximum.bit_length() <= bits else 0
    is_grey = picture.mode.startswith("I")
    if not is_grey and declared not in (0, bits):  # of colour, Pillow keeps the upper eight bits
        raise UnknownRange(f"colour with {declared} of {bits} bits is not supported. Save the image with 8 bits")
    if (is_signed and not (is_grey and declared)) or (bits > 16 and not declared):
        kind = f"{'signed ' * is_signed}{bits}-bit integer"
        raise UnknownRange(f"{kind} pixels have no agreed range. Save the image with 8 or 16 bits, unsigned")
    return declared or bits


def deep_grey(picture: Image.Image, bits: int) -> Image.Image:
    """Scale a loaded grey image of mode I or I;16, whose samples have `bits` bits, to 8-bit RGB."""
    values = np.asarray(picture).astype(np.int64)  # (H, W)
    grey = (np.clip(values, 0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def is_dark(picture: Image.Image) -> bool:
    """Return whether an 8-bit RGB image has nothing above 15 of 255: of a 16-bit file, only the lower 12 bits."""
    extrema: Any = picture.getextrema()
    return all(high < 16 for _, high in extrema)


def warn_of_range(bits: int, dark: bool) -> None:
    """Say once in a process which range was assumed, and once if an image came out almost black."""
    _warn(f"images with {bits} bits per sample: 0 to {2**bits - 1:,} is taken as black to white")
    if dark:
        _warn(DARK.format(which="an image", bits=bits))


DARK = (
    "{which} with {bits} bits per sample will be almost black: no value is above a sixteenth of the range. If the "
    "camera uses fewer bits than the file, rescale the files first (12 bits in 16: multiply by 16)"
)


@cache
def _warn(message: str) -> None:
    warnings.warn(message, stacklevel=5)


def _raw_mode(picture: Image.Image) -> str:
    tile: Any = getattr(picture, "tile", None)
    return str(tile[0][3]) if tile else ""


def _first(tags: Any, tag: int, default: int) -> int:
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
