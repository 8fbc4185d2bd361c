"""The classes of a segmentation data set, and how the pixels of its mask files encode them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from PIL import Image

from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.wording import first_few

VOID = 255
"""The value of pixels without a class in decoded masks. Losses and metrics ignore them."""
_UNKNOWN = 254  # the entry in a lookup table for a value that is neither a class nor ignored
_MOST_CLASSES = 254

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a data set, and the values of mask pixels that stand for them.

    Palette and grey masks hold a number in each pixel: `first_value` for the first class, and so on. RGB masks hold the
    colour of the class.

    Attributes:
        names: the names of the classes.
        first_value: value of the first class.
        ignore_values: values of pixels that belong to no class.
        colours: the colour of each class in RGB masks; () if there are none.
        ignore_colours: colours of pixels that belong to no class.

    Raises:
        ValueError: there are too few or too many classes, a name or a colour occurs twice, or a value is negative or
            both a class and ignored.
    """

    names: tuple[str, ...]
    first_value: int = 0
    ignore_values: tuple[int, ...] = (VOID,)
    colours: tuple[Colour, ...] = ()
    ignore_colours: tuple[Colour, ...] = ()

    def __post_init__(self) -> None:
        if not 2 <= len(self.names) <= _MOST_CLASSES:
            found = f"{len(self.names)} class{'es' * (len(self.names) != 1)}"
            raise ValueError(f"the class list has {found}. Expected 2 to {_MOST_CLASSES}")
        if repeated := _repeated(self.names):
            raise ValueError(f"the class list names {first_few(repeated)} twice. Expected each class once")
        if repeated := [str(colour) for colour in _repeated([*self.colours, *set(self.ignore_colours)])]:
            raise ValueError(
                f"the class list has the colour {first_few(repeated)} twice. Expected a different one for each class"
            )
        values = range(self.first_value, self.first_value + len(self.names))
        if min([self.first_value, *self.ignore_values]) < 0:
            raise ValueError(
                f"first_class_value={self.first_value} or ignore_values={list(self.ignore_values)} is negative, but "
                "mask files contain no negative values. Use 0 or more"
            )
        if both := sorted(set(self.ignore_values) & set(values)):
            raise ValueError(
                f"ignore_values={list(self.ignore_values)} contains {first_few([str(v) for v in both])}, but the "
                f"values {values[0]} to {values[-1]} stand for the {len(self.names)} classes. Leave out these values, "
                "or change first_class_value"
            )

    def decode(self, mask: Image.Image, name: str) -> np.ndarray:
        """Return the class of each pixel of a mask, (H, W) uint8; `VOID` for ignored ones.

        Args:
            mask: a palette, grey or RGB image, as its file stores it.
            name: name of the mask for messages.

        Raises:
            UnreadableImage: a pixel has a value that is neither a class nor ignored.
        """
        pixels = np.asarray(mask)
        if pixels.ndim == 3:
            return self._decode_colours(pixels[..., :3], name)
        values = pixels.astype(np.int64)
        last_value = len(self._lookup) - 1
        is_unknown = (values < 0) | (values > last_value)
        classes: np.ndarray = self._lookup[values.clip(0, last_value)]
        is_unknown |= classes == _UNKNOWN
        if is_unknown.any():
            wrong = np.unique(values[is_unknown])
            last = self.first_value + len(self.names) - 1
            raise UnreadableImage(
                f"mask {name} has pixels of the value {first_few([str(v) for v in wrong])}. Expected "
                f"{self.first_value} to {last} for the {len(self.names)} classes, or one of ignore_values="
                f"{list(self.ignore_values)}"
            )
        return classes

    def _decode_colours(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Return the class of each pixel (H, W, 3) uint8."""
        if not self.colours:
            if (pixels == pixels[..., :1]).all():  # grey, saved as RGB
                return self.decode(Image.fromarray(np.ascontiguousarray(pixels[..., 0])), name)
            raise UnreadableImage(
                f"mask {name} is an RGB image, but the class list has no colours. Expected lines such as "
                "'128 64 128 road' in classes.txt"
            )
        codes = _colour_code(pixels)  # (H, W)
        order = np.argsort(self._colour_codes)
        position = np.searchsorted(self._colour_codes, codes, sorter=order).clip(max=len(order) - 1)
        found = order[position]  # (H, W): index into the codes
        is_known = self._colour_codes[found] == codes
        if not is_known.all():
            wrong = [f"({c >> 16}, {c >> 8 & 255}, {c & 255})" for c in np.unique(codes[~is_known]).tolist()]
            raise UnreadableImage(
                f"mask {name} has pixels of the colour {first_few(wrong, 3)}, which the class list does not contain. "
                "Add the colour with its class, or with the name void"
            )
        classes: np.ndarray = np.where(found < len(self.names), found, VOID).astype(np.uint8)
        return classes

    @cached_property
    def _lookup(self) -> np.ndarray:
        """(N,) uint8: the class of each value, `VOID` or `_UNKNOWN`."""
        size = 1 + max(self.first_value + len(self.names) - 1, *self.ignore_values, 0)
        lookup = np.full(size, _UNKNOWN, np.uint8)
        lookup[self.first_value : self.first_value + len(self.names)] = np.arange(len(self.names))
        lookup[list(self.ignore_values)] = VOID
        return lookup

    @cached_property
    def _colour_codes(self) -> np.ndarray:
        """(N,) int32: the colours of the classes, then the ignored ones, each as one number."""
        return _colour_code(np.array([*self.colours, *self.ignore_colours]))


def _colour_code(colours: np.ndarray) -> np.ndarray:
    """Return colours (…, 3) as one number each: (…) int32."""
    codes: np.ndarray = colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    return codes


def _repeated(values: Sequence[Any]) -> list[Any]:
    """Return the values that occur more than once, sorted."""
    return sorted(value for value, count in Counter(values).items() if count > 1)


def default_palette(count: int) -> list[Colour]:
    """Return the first `count` colours of Pascal VOC, which are easy to tell apart. The first one is black."""
    colours: list[Colour] = []
    for number in range(count):
        channels = [0, 0, 0]
        for bit in range(8):
            for channel in range(3):
                channels[channel] |= (number >> (3 * bit + channel) & 1) << (7 - bit)
        colours.append((channels[0], channels[1], channels[2]))
    return colours


def palette_image(classes: np.ndarray, class_count: int) -> Image.Image:
    """Return a palette image of the class of each pixel, (H, W) uint8, as `predict` writes it.

    Its pixels hold the class numbers. The palette gives each class a colour, and `VOID` white.
    """
    colours: Sequence[int] = [value for colour in default_palette(class_count) for value in colour]
    image = Image.fromarray(classes)
    image.putpalette([*colours, *[0] * (3 * (VOID - class_count)), 255, 255, 255])
    return image
