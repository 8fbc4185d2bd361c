"""`load_image`: every format is read as RGB, and every kind of damage is named."""

import io
import struct
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import (
    UnreadableImage,
    load_image,
)
from acmix_zoo.data.formats import has_heif
from acmix_zoo.data.images import image_size
from acmix_zoo.data.inspection import inspect_images
from acmix_zoo.data.sources.find_images import walk_folders

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # (H, W)


def pixel(path: Path, x: int, y: int) -> tuple[int, ...]:
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


def test_grey_bilevel_and_one_pixel_images(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    assert pixel(tmp_path / "grey.png", 3, 2) == (95, 95, 95)
    Image.fromarray(RAMP > 100).save(tmp_path / "bits.png")
    assert pixel(tmp_path / "bits.png", 7, 5) == (255, 255, 255)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png").size == (1, 1) and pixel(tmp_path / "dot.png", 0, 0) == (1, 2, 3)


@pytest.mark.parametrize(
    "extension", sorted({".jpg", ".jfif", ".avif", ".webp", ".tiff", ".bmp", ".gif", ".jp2", ".pcx"})
)
def test_every_format_is_found_and_read(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a{extension}")
    (found,) = walk_folders([tmp_path]).images[0]
    assert np.abs(np.subtract(pixel(Path(found), 5, 5), (200, 100, 50))).max() <= 12  # GIF has a palette
    assert inspect_images([found]).problems == []


def test_heic_is_read_if_the_package_is_installed() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 100, 50))).save(buffer)
    assert np.abs(np.subtract(load_image(buffer.getvalue()).getpixel((5, 5)), (200, 100, 50))).max() <= 12


def test_transparent_images_get_a_white_background(tmp_path: Path) -> None:
    rgba = Image.new("RGBA", (2, 1), (200, 0, 0, 255))
    rgba.putpixel((1, 0), (200, 0, 0, 0))
    rgba.save(tmp_path / "rgba.png")
    assert pixel(tmp_path / "rgba.png", 0, 0) == (200, 0, 0) and pixel(tmp_path / "rgba.png", 1, 0) == (255, 255, 255)
    Image.new("LA", (1, 1), (9, 0)).save(tmp_path / "la.png")
    assert pixel(tmp_path / "la.png", 0, 0) == (255, 255, 255)
    palette = Image.new("P", (2, 1))
    palette.putpalette([10, 20, 30, 40, 50, 60])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "palette.png", transparency=1)
    assert pixel(tmp_path / "palette.png", 0, 0) == (10, 20, 30)
    assert pixel(tmp_path / "palette.png", 1, 0) == (255, 255, 255)


def test_cmyk_animation_and_orientation(tmp_path: Path) -> None:
    Image.new("CMYK", (2, 2), (0, 0, 0, 0)).save(tmp_path / "print.jpg")
    assert pixel(tmp_path / "print.jpg", 0, 0) == (255, 255, 255)
    frames = [Image.new("RGB", (2, 2), colour) for colour in ("red", "blue")]
    frames[0].save(tmp_path / "film.gif", save_all=True, append_images=frames[1:])
    assert pixel(tmp_path / "film.gif", 0, 0) == (255, 0, 0)
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned by a quarter
    Image.new("RGB", (4, 2)).save(tmp_path / "turned.jpg", exif=exif)
    assert load_image(tmp_path / "turned.jpg").size == (2, 4)


@pytest.mark.parametrize("extension", ["jpeg", "png", "tiff", "webp"])
@pytest.mark.parametrize("orientation", [1, 3, 6])
def test_the_size_of_an_image_is_that_after_turning_it(tmp_path: Path, extension: str, orientation: int) -> None:
    """Pillow applies the orientation of a TIFF file when it opens it, but not that of other files."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"turned.{extension}"
    Image.new("RGB", (4, 2)).save(path, exif=exif)
    assert image_size(path) == image_size(path.read_bytes()) == load_image(path).size


def jpeg_with_tags(path: Path, *tags: tuple[int, int, bytes]) -> Path:
    """Save an image of 4×2 pixels with EXIF tags: number, type and value in four bytes."""
    entries = b"".join(struct.pack("<HHI", tag, kind, 1) + value for tag, kind, value in tags)
    exif = b"Exif\0\0II*\0" + struct.pack("<IH", 8, len(tags)) + entries + bytes(4)
    Image.new("RGB", (4, 2)).save(path, exif=exif)
    return path


def test_odd_tags_do_not_keep_an_image_from_being_turned(tmp_path: Path) -> None:
    """Pillow reads a negative height from the tags, but cannot write it."""
    path = jpeg_with_tags(tmp_path / "x.jpg", (0x0112, 3, b"\6\0\0\0"), (0x0101, 9, struct.pack("<i", -5)))
    assert load_image(path).size == image_size(path) == (2, 4)


def test_an_unknown_orientation_is_ignored(tmp_path: Path) -> None:
    path = jpeg_with_tags(tmp_path / "x.jpg", (0x0112, 2, b"6\0\0\0"))  # as text
    assert load_image(path).size == image_size(path) == (4, 2)


def test_the_size_of_an_unreadable_image_is_unknown(tmp_path: Path) -> None:
    path = tmp_path / "large.png"
    Image.new("1", (20_000, 10_000)).save(path)  # more than Pillow opens
    assert image_size(path) is image_size(b"broken") is image_size(tmp_path / "missing.png") is None


def test_bytes_are_read_like_files() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "png")
    assert load_image(buffer.getvalue()).size == (8, 6)
    with pytest.raises(UnreadableImage, match="row 7"):
        load_image(b"xyz", "row 7")


@pytest.mark.parametrize(
    ("name", "content", "reason"),
    [
        ("ps.png", b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n", "it is a PostScript file"),
        ("page.jpg", b"\n<!DOCTYPE html><html>404</html>", "it is a web page, perhaps a failed download"),
        ("phone.jpg", b"\0\0\0\x24ftypheic\0\0\0\0mif1heic", "it is a HEIC photograph"),
        ("lfs.png", b"version https://git-lfs.github.com/spec/v1\n", "Git LFS pointer"),
        ("empty.png", b"", "it is an empty file"),
        ("text.png", b"hello", "it is not an image"),
        ("raw.cr3", b"\0\0\0\x18ftypcrx \0\0\0\1", "it is a raw photograph; convert it to JPEG or PNG"),
        ("film.jpg", b"\0\0\0\x18ftypmp42\0\0\0\1", "it is a video"),
    ],
)
def test_other_formats_are_named_and_never_opened(
    tmp_path: Path, name: str, content: bytes, reason: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ghostscript(*_: Any) -> None:
        raise AssertionError("Ghostscript would be started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(UnreadableImage, match=reason):
            load_image(source)
    (problem,) = inspect_images([str(tmp_path / name)]).problems
    assert reason in problem and name in problem


@pytest.mark.parametrize("name", ["a.heic", "a.NEF", "a.svg", "a.jxl"])
def test_advice_on_other_formats_depends_on_the_extension(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello")
    extension = Path(name).suffix.lower()
    if extension == ".heic" and has_heif():
        pytest.skip("pillow-heif is installed")
    advice = "to read them, `pip install pillow-heif`" if extension == ".heic" else "convert them to JPEG or PNG"
    with pytest.raises(
        UnreadableImage, match=f"it is not an image in a supported format. For {extension} files: {advice}"
    ):
        load_image(tmp_path / name)


def test_a_replaced_image_open_does_not_hide_the_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once imported, Ultralytics reacts to an unknown file by importing a package that may be missing."""

    def replaced(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    monkeypatch.setattr("PIL.Image.open", replaced)
    with pytest.raises(UnreadableImage, match="it is a web page"):
        load_image(tmp_path / "page.jpg")
