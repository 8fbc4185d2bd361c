"""Fonts for class names: of Pillow for pictures, and of matplotlib for plots."""

from collections.abc import Iterator
from pathlib import Path

import pytest
from matplotlib import get_data_path
from PIL import ImageFont

from acmix_zoo.data import fonts


@pytest.fixture(autouse=True)
def serif(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Make a font that comes with matplotlib the only one with letters beyond ASCII."""
    path = Path(get_data_path(), "fonts", "ttf", "DejaVuSerif.ttf")
    monkeypatch.setattr(fonts, "_WIDE_FONTS", ("missing.ttf", str(path)))
    fonts._wide_fonts.cache_clear(), fonts.plot_fonts.cache_clear()
    yield path
    fonts._wide_fonts.cache_clear(), fonts.plot_fonts.cache_clear()


def test_a_font_with_more_letters_is_only_used_for_them() -> None:
    plain, wide = fonts.font_for("dress…"), fonts.font_for("платье…")
    assert isinstance(plain, ImageFont.FreeTypeFont) and isinstance(wide, ImageFont.FreeTypeFont)
    assert plain.getname()[0] != "DejaVu Serif" and wide.getname()[0] == "DejaVu Serif"


def test_plots_look_for_letters_in_their_own_font_first() -> None:
    assert fonts.plot_fonts() == ["DejaVu Sans", "DejaVu Serif"]
