"""Fonts that have the letters of class names, for pictures drawn with Pillow and for plots of matplotlib."""

from __future__ import annotations

from contextlib import suppress
from functools import cache

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIZE = 12  # pixels
# The fonts of Pillow and matplotlib have few letters or none of many alphabets. These are common ones with many more.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "DejaVuSans.ttf", "arial.ttf")


def font_for(line: str) -> Font:
    """Return a font of Pillow that has the letters of a line, if one is installed."""
    is_ascii = line.replace("…", "").isascii()
    return next(iter(_wide_fonts()), _default_font()) if not is_ascii else _default_font()


@cache
def plot_fonts() -> list[str]:
    """Return the fonts in which matplotlib looks for a letter, in this order: its own, and those installed here."""
    from matplotlib.font_manager import FontProperties, fontManager

    families = ["DejaVu Sans"]
    for font in _wide_fonts():
        path = str(font.path)
        with suppress(OSError, RuntimeError):  # Pillow may open files that matplotlib does not
            fontManager.addfont(path)  # its cached list may be older than the font
            families.append(FontProperties(fname=path).get_name())
    return list(dict.fromkeys(families))


@cache
def _wide_fonts() -> list[ImageFont.FreeTypeFont]:
    found = []
    for name in _WIDE_FONTS:
        with suppress(OSError):
            found.append(ImageFont.truetype(name, _SIZE))
    return found


@cache
def _default_font() -> Font:
    return ImageFont.load_default(_SIZE)
