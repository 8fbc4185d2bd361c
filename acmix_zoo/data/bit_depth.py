"""Find the range of values from black to white in images with more than 8 bits per sample.

The range depends only on what the file declares, not on the values in the image. The same value is therefore the same
grey in every image, in training and in prediction:

| file | range |
|---|---|
| PNG, 16 bits | 0 to 65535, as the PNG specification requires regardless of the sBIT chunk |
| PGM, JPEG 2000 | 0 to the maximum in the header (Pillow scales it) |
| TIFF, 12 or 16 bits, unsigned | 0 to 2^bits − 1, or to MaxSampleValue if the file has that tag and it equals 2^n − 1 |
| TIFF, signed or 32 bits | 0 to MaxSampleValue under the same condition; otherwise not supported, like floating point |

Any other MaxSampleValue is ignored, because the TIFF specification allows it to be the maximum of that one image.
"""

from __future__ import annotations

import warnings
from functools import cache
from typing import Any

import numpy as np
from PIL import Image

_BITS, _FORMAT, _MAXIMUM = 258, 339, 281  # TIFF tags: BitsPerSample, SampleFormat, MaxSampleValue


class UnknownRange(ValueError):
    """The file does not state which value is white."""


def sample_bits(image: Image.Image) -> int:
    """Return the number of bits from which the samples of an opened image are scaled; 8 for ordinary images.

    Raises:
        UnknownRange: the samples are floating-point, signed or 32-bit, and the file declares no maximum.
    """
    tags: Any = getattr(image, "tag_v2", None)
    if image.mode == "F":
        raise UnknownRange("floating-point pixels have no agreed range. Save the image with 8 or 16 bits")
    if image.format != "TIFF" or not tags:
        deep = image.mode.startswith("I") or (image.format in ("PNG", "SGI") and "16" in _raw_mode(image))
        return 16 if deep else 8
    bits, is_signed = _tag_value(tags, _BITS, 1), _tag_value(tags, _FORMAT, 1) == 2
    if bits < 8 or (bits == 8 and not is_signed):
        return 8
    maximum = _tag_value(tags, _MAXIMUM, 0)
    declared = maximum.bit_length() if maximum & (maximum + 1) == 0 and 8 <= maximum.bit_length() <= bits else 0
    is_grey = image.mode.startswith("I")
    if not is_grey and declared not in (0, bits):  # Pillow keeps only the upper eight bits of colour images
        raise UnknownRange(f"colour with {declared} of {bits} bits is not supported. Save the image with 8 bits")
    if (is_signed and not (is_grey and declared)) or (bits > 16 and not declared):
        kind = f"{'signed ' * is_signed}{bits}-bit integer"
        raise UnknownRange(f"{kind} pixels have no agreed range. Save the image with 8 or 16 bits, unsigned")
    return declared or bits


def scale_to_rgb(image: Image.Image, bits: int) -> Image.Image:
    """Scale a loaded grey image of mode I or I;16 with `bits` bits per sample to 8-bit RGB."""
    values = np.asarray(image).astype(np.int64)  # (H, W)
    if bits == 32:  # Pillow reads unsigned integers as signed ones
        values &= 2**32 - 1
    grey = (np.clip(values, 0, 2**bits - 1) >> (bits - 8)).astype(np.uint8)
    return Image.fromarray(grey).convert("RGB")


def is_dark(image: Image.Image) -> bool:
    """Return whether no value of an 8-bit RGB image exceeds 15. This happens if a 16-bit file only uses 12 bits."""
    extrema: Any = image.getextrema()
    return all(high < 16 for _, high in extrema)


def warn_of_range(bits: int, dark: bool) -> None:
    """Warn once per process about the assumed range, and once if an image is almost black."""
    _warn_once(f"images with {bits} bits per sample: black to white is 0 to {2**bits - 1:,}")
    if dark:
        _warn_once(DARK_MESSAGE.format(which="an image", bits=bits))


DARK_MESSAGE = (
    "{which} with {bits} bits per sample will be almost black: no value is above a sixteenth of the range. If the "
    "camera uses fewer bits than the file, rescale the files first (12 bits in 16: multiply by 16)"
)


@cache
def _warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=2)


def _raw_mode(image: Image.Image) -> str:
    """Return Pillow's name for the pixel layout in the file, such as "RGB;16B"."""
    tile: Any = getattr(image, "tile", None)
    return str(tile[0][3]) if tile else ""


def _tag_value(tags: Any, tag: int, default: int) -> int:
    """Return the value of a TIFF tag. If there is one per channel, return that of the first channel."""
    value = tags.get(tag, default)
    return int(value[0] if isinstance(value, tuple) else value)
