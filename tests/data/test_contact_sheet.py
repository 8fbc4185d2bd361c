"""Images in a grid with text below them."""

from pathlib import Path

import pytest
from PIL import Image

from acmix_zoo.data.contact_sheet import write_contact_sheet


def colored(*colors: str) -> list[Image.Image]:
    return [Image.new("RGB", (40, 20), color) for color in colors]


def test_images_are_in_reading_order_above_their_titles(tmp_path: Path) -> None:
    names = ["red", "lime", "blue", "yellow", "cyan", "magenta", "white"]
    path = write_contact_sheet(tmp_path / "sheet.png", colored(*names), ["one\ntwo"] * 7, ["black"] * 6 + ["red"])
    with Image.open(path) as sheet:
        assert sheet.size == (6 * 168 + 8, 2 * 200 + 8)  # two lines of text below 160 pixels
        assert sheet.getpixel((8 + 80, 8 + 80)) == (255, 0, 0)
        assert sheet.getpixel((8 + 168 + 80, 8 + 80)) == (0, 255, 0)
        title = sheet.crop((8, 208 + 160, 168, 408))
        assert min(title.getchannel("R").tobytes()) == 255 and min(title.getchannel("G").tobytes()) < 128  # red text


def test_long_and_foreign_titles_stay_below_their_image(tmp_path: Path) -> None:
    titles = ["a very long name of a class that goes on and on", "连衣裙 платье", r"<b>5 $\frac$ & 10</b>"]
    path = write_contact_sheet(tmp_path / "sheet.jpg", colored("black", "black", "black"), titles)
    with Image.open(path) as sheet:
        assert sheet.size == (3 * 168 + 8, 184 + 8)
        gap = sheet.crop((168, 170, 175, 190))
        assert min(gap.convert("L").tobytes()) > 200  # the margin between two titles is empty


def test_other_extensions_and_no_images_are_rejected(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"extension '\.txt'\. Expected one of \.png"):
        write_contact_sheet(tmp_path / "sheet.txt", colored("red"), ["red"])
    with pytest.raises(ValueError, match=r"has no images"):
        write_contact_sheet(tmp_path / "sheet.png", [], [])
    assert not list(tmp_path.iterdir())
