"""Fonts that have the letters of class names, for pictures drawn with Pillow and for plots of matplotlib."""

from __future__ import annotations

from functools import cache
from pathlib import Path

from PIL import ImageFont

Font = ImageFont.FreeTypeFont | ImageFont.ImageFont

_SIZE = 12  # pixels
# The fonts of Pillow and matplotlib have few letters or none of many alphabets. These are common ones with many more.
_WIDE_FONTS = ("NotoSansCJK-Regular.ttc", "wqy-microhei.ttc", "msyh.ttc", "PingFang.ttc", "DejaVuSans.ttf", "arial.ttf")


def font_for(line: str) -> Font:
    """Return a font of Pillow that has the letters of a line, if one is installed."""
    return _font(line.replace("…", "").isascii())


@cache
def _font(is_ascii: bool) -> Font:
    for name in () if is_ascii else _WIDE_FONTS:
        try:
            return ImageFont.truetype(name, _SIZE)
        except OSError:
            continue
    return ImageFont.load_default(_SIZE)


@cache
def plot_fonts() -> list[str]:
    """Return the fonts in which matplotlib looks for a letter, in this order: its own one, and those installed here."""
    from matplotlib.font_manager import fontManager

    families = {Path(font.fname).name: font.name for font in fontManager.ttflist}
    return list(dict.fromkeys(["DejaVu Sans", *(families[name] for name in _WIDE_FONTS if name in families)]))
