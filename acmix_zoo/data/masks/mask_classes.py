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
_MODES = ("1", "L", "P", "F", "RGB", "RGBA", "RGBX")  # of Pillow; and I, I;16 and so on

Colour = tuple[int, int, int]


@dataclass(frozen=True)
class MaskClasses:
    """The classes of a data set, and the values of mask pixels that stand for them.

    RGB masks hold the colour of the class in each pixel. Grey masks hold a number: `first_value` for the first class,
    and so on; or the grey value of the class, if all colours are grey. Palette masks hold colours if all colours that
    they use are those of classes or ignored, otherwise numbers.

    Attributes:
        names: the names of the classes.
        first_value: value of the first class.
        ignore_values: values of pixels that belong to no class.
        colours: the colour of each class; () if masks hold only numbers.
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
        if min([self.first_value, *self.ignore_values]) < 0:
            raise ValueError(
                f"first_class_value={self.first_value} or ignore_values={list(self.ignore_values)} is negative, but "
                "mask files contain no negative values. Use 0 or more"
            )
        both = set(self.ignore_values) & set(self._greys or self._numbers)
        if self._greys:
            both.discard(VOID)  # ignored by default, unless the class list says that it is a class
        if both:
            change = "the colours in the class list" if self._greys else "first_class_value"
            raise ValueError(
                f"ignore_values={list(self.ignore_values)} contains {first_few([str(v) for v in sorted(both)])}, but "
                f"the values {self._describe_values(self._greys)} stand for the {len(self.names)} classes. Leave out "
                f"these values, or change {change}"
            )

    def decode(self, mask: Image.Image, name: str) -> np.ndarray:
        """Return the class of each pixel of a mask, (H, W) uint8; `VOID` for ignored ones.

        Args:
            mask: a palette, grey or RGB image, as its file stores it.
            name: name of the mask for messages.

        Raises:
            UnreadableImage: a pixel has a value that is neither a class nor ignored, it is not clear whether the
                colours or the numbers of a palette count, or the mask has a mode such as CMYK.
        """
        if mask.mode in ("LA", "PA"):
            mask = mask.convert(mask.mode[0])  # without its alpha channel
        if mask.mode not in _MODES and not mask.mode.startswith("I"):
            raise UnreadableImage(
                f"mask {name} is a {mask.mode} image. Expected a grey, palette or RGB image. Save it as one of these"
            )
        if mask.mode == "P":
            return self._decode_palette(mask, name)
        if mask.mode == "1" and VOID in self._greys:
            mask = mask.convert("L")  # white is 255 instead of 1
        pixels = np.asarray(mask)
        if mask.mode == "F" and (is_between := ~np.isfinite(pixels) | (pixels != np.trunc(pixels))).any():
            wrong = first_few([str(value) for value in np.unique(pixels[is_between])])
            raise UnreadableImage(
                f"mask {name} has pixels of the value {wrong}. Expected whole numbers, which stand for classes. Save "
                "the mask with integers"
            )
        if pixels.ndim == 3:
            return self._decode_colours(pixels[..., :3], name)
        return self._decode_numbers(pixels, name, self._greys)

    def _decode_numbers(self, pixels: np.ndarray, name: str, greys: Sequence[int] = ()) -> np.ndarray:
        """Return the class of each pixel (H, W) of an integer type.

        Args:
            greys: the value of each class, if these are not consecutive numbers.
        """
        classes = self._classes_of_values(pixels, greys)
        is_unknown = classes == _UNKNOWN
        if is_unknown.any():
            wrong = first_few([str(value) for value in np.unique(pixels[is_unknown]).astype(np.int64)])
            hint = ". If pixels hold the numbers of classes, remove the colours from the class list" if greys else ""
            raise UnreadableImage(
                f"mask {name} has pixels of the value {wrong}. Expected {self._describe_values(greys)} for the "
                f"{len(self.names)} classes, or one of ignore_values={list(self.ignore_values)}{hint}"
            )
        return classes

    def _decode_palette(self, mask: Image.Image, name: str) -> np.ndarray:
        """Return the class of each pixel of a palette mask: by colour if the class list contains all colours that the
        mask uses, otherwise by number."""
        pixels = np.asarray(mask)
        if not self.colours:
            return self._decode_numbers(pixels, name)
        numbers, positions = np.unique(pixels, return_inverse=True)
        palette = np.zeros((256, 3), np.int32)
        entries = np.array(mask.getpalette()).reshape(-1, 3)
        palette[: len(entries)] = entries
        codes = _colour_code(palette[numbers])
        by_colour, by_number = self._classes_of_colours(codes), self._classes_of_values(numbers)
        is_listed = by_colour != _UNKNOWN
        is_usable = is_listed | (by_number == VOID)
        if is_usable.all():
            classes: np.ndarray = np.where(is_listed, by_colour, VOID).astype(np.uint8)[positions]
            return classes.reshape(pixels.shape)
        if (by_colour == by_number)[is_listed].all():
            return self._decode_numbers(pixels, name)
        raise UnreadableImage(
            f"mask {name} has a palette with colours of the class list in another order, and with the colour "
            f"{_describe_colours(codes[~is_usable])}, which the list does not contain. Add the colour with its class, "
            "or with the name void. If the numbers of the palette count, remove the colours from the list"
        )

    def _decode_colours(self, pixels: np.ndarray, name: str) -> np.ndarray:
        """Return the class of each pixel (H, W, 3) uint8."""
        if not self.colours:
            if (pixels == pixels[..., :1]).all():  # grey, saved as RGB
                return self._decode_numbers(pixels[..., 0], name)
            raise UnreadableImage(
                f"mask {name} is an RGB image, but the class list has no colours. Expected lines such as "
                "'128 64 128 road' in classes.txt"
            )
        codes = _colour_code(pixels)  # (H, W)
        classes = self._classes_of_colours(codes)
        if (is_unknown := classes == _UNKNOWN).any():
            raise UnreadableImage(
                f"mask {name} has pixels of the colour {_describe_colours(codes[is_unknown])}, which the class list "
                "does not contain. Add the colour with its class, or with the name void"
            )
        return classes

    def _classes_of_values(self, values: np.ndarray, greys: Sequence[int] = ()) -> np.ndarray:
        """Return the class of each value, uint8; `VOID`, or `_UNKNOWN`. `greys` are as for `_decode_numbers`."""
        ignored = set(self.ignore_values)
        if greys:
            ignored = ignored - set(greys) | {red for red, *others in self.ignore_colours if others == [red, red]}
        classes = greys or self._numbers
        lookup = np.full(2 + max(*classes, *ignored), _UNKNOWN, np.uint8)  # the last entry is for all other values
        lookup[list(classes)] = np.arange(len(classes))
        lookup[list(ignored)] = VOID
        found: np.ndarray = lookup[values.astype(np.int64).clip(-1, len(lookup) - 1)]
        return found

    def _classes_of_colours(self, codes: np.ndarray) -> np.ndarray:
        """Return the class of each colour code, uint8; `VOID`, or `_UNKNOWN`."""
        order = np.argsort(self._colour_codes)
        position = np.searchsorted(self._colour_codes, codes, sorter=order).clip(max=len(order) - 1)
        found = order[position]  # index into the codes
        classes: np.ndarray = np.where(found < len(self.names), found, VOID).astype(np.uint8)
        classes[self._colour_codes[found] != codes] = _UNKNOWN
        return classes

    def _describe_values(self, greys: Sequence[int]) -> str:
        """Return the values of the classes, in words."""
        return first_few([str(value) for value in greys]) or f"{self._numbers[0]} to {self._numbers[-1]}"

    @property
    def _numbers(self) -> range:
        """The numbers of the classes in palette masks, and in grey masks without grey colours in the class list."""
        return range(self.first_value, self.first_value + len(self.names))

    @cached_property
    def _greys(self) -> tuple[int, ...]:
        """The value of each class in grey masks if all colours of the class list are grey, otherwise ()."""
        is_grey = all(red == green == blue for red, green, blue in self.colours)
        return tuple(red for red, *_ in self.colours) if is_grey else ()

    @cached_property
    def _colour_codes(self) -> np.ndarray:
        """(N,) int32: the colours of the classes, then the ignored ones, each as one number."""
        return _colour_code(np.array([*self.colours, *self.ignore_colours]))


def _colour_code(colours: np.ndarray) -> np.ndarray:
    """Return colours (…, 3) as one number each: (…) int32."""
    codes: np.ndarray = colours.astype(np.int32) @ np.array([65536, 256, 1], np.int32)
    return codes


def _describe_colours(codes: np.ndarray) -> str:
    """Return the first colours among codes, in words."""
    return first_few([f"({code >> 16}, {code >> 8 & 255}, {code & 255})" for code in np.unique(codes).tolist()], 3)


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
