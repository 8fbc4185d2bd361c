"""One picture: every kind is read as RGB, every kind of damage is named."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import UnreadableImage, bit_depth, inspection, load_image
from acmix_zoo.data.formats import has_heif
from acmix_zoo.data.inspection import find_problems, inspect_images
from acmix_zoo.data.sources.find_images import find_images

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # (H, W)


def pixel(path: Path, x: int, y: int) -> tuple[int, ...]:
    image = load_image(path)
    assert image.mode == "RGB"
    return image.getpixel((x, y))  # type: ignore[return-value]


def test_grey_bilevel_and_one_pixel(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "grey.png")
    assert pixel(tmp_path / "grey.png", 3, 2) == (95, 95, 95)
    Image.fromarray(RAMP > 100).save(tmp_path / "bits.png")
    assert pixel(tmp_path / "bits.png", 7, 5) == (255, 255, 255)
    Image.new("RGB", (1, 1), (1, 2, 3)).save(tmp_path / "dot.png")
    assert load_image(tmp_path / "dot.png").size == (1, 1) and pixel(tmp_path / "dot.png", 0, 0) == (1, 2, 3)


# ---- more than 8 bits per sample

GREY = RAMP.astype(np.uint32)


def tiff(values: np.ndarray, bits: int, kind: int = 1, maximum: int = 0) -> bytes:
    """An uncompressed grey TIFF (H, W) of unsigned (kind 1) or signed (2) integers, with a MaxSampleValue if given."""
    if bits == 12:
        joined = "".join(f"{value:012b}" for value in values.ravel().tolist())
        data = int(joined, 2).to_bytes(len(joined) // 8, "big")
    else:
        data = values.astype(f"<{'ui'[kind - 1]}{bits // 8}").tobytes()
    height, width = values.shape
    tags = {256: width, 257: height, 258: bits, 259: 1, 262: 1, 273: 0, 277: 1, 278: height, 279: len(data), 339: kind}
    tags |= {281: maximum} if maximum else {}
    start = 8 + 2 + 12 * len(tags) + 4
    rows = [struct.pack("<HHII", tag, 4, 1, start if tag == 273 else tags[tag]) for tag in sorted(tags)]
    return b"II*\0" + struct.pack("<IH", 8, len(tags)) + b"".join(rows) + bytes(4) + data


def grey(content: bytes) -> list[list[int]]:
    picture = load_image(content, "deep")
    assert picture.mode == "RGB"
    pixels = np.asarray(picture)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


@pytest.mark.filterwarnings("ignore:images with")
@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 256 + 17).save(tmp_path / f"deep.{kind}")
    assert pixel(tmp_path / f"deep.{kind}", 3, 2) == (95, 95, 95)


@pytest.mark.filterwarnings("ignore:images with")
@pytest.mark.parametrize(("bits", "maximum", "factor"), [
    (12, 0, 16), (16, 0, 256), (16, 4095, 16), (16, 255, 1), (32, 4095, 16), (32, 2**20 - 1, 4096),
    (32, 2**24 - 1, 65536), (16, 4000, 256),  # the maximum of one image says nothing
])  # fmt: skip
def test_the_range_is_what_the_file_declares(bits: int, maximum: int, factor: int) -> None:
    assert grey(tiff(GREY * factor, bits, maximum=maximum)) == RAMP.tolist()
    half = tiff(GREY // 2 * factor, bits, maximum=maximum)  # and never what one image happens to hold
    assert grey(half) == (RAMP // 2).tolist()


@pytest.mark.parametrize(("bits", "kind"), [(32, 1), (32, 2), (16, 2), (8, 2)])
def test_values_without_a_known_range_are_refused(bits: int, kind: int) -> None:
    with pytest.raises(
        UnreadableImage, match=f"{bits}-bit integer pixels have no agreed range. Save the image with 8 or 16"
    ):
        load_image(tiff(GREY // 2, bits, kind), "deep")


def test_a_maximum_makes_signed_values_readable() -> None:
    values = (GREY * 16).astype(np.int32)
    values[0, 0] = -7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert grey(tiff(values, 16, 2, 4095)) == RAMP.tolist()


def test_a_pgm_has_the_range_of_its_header() -> None:
    content = b"P5\n8 6\n4095\n" + (GREY * 16 + 8).astype(">u2").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.abs(np.subtract(grey(content), RAMP)).max() <= 1  # Pillow scales by 65535 / 4095


def deep_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def colour_png(values: np.ndarray) -> bytes:
    """A PNG of 16-bit RGB, which Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    rows = np.repeat(values.astype(">u2")[..., None], 3, 2).reshape(height, -1)  # (H, 3W)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.parametrize("make", [deep_png, colour_png])
def test_warnings_give_the_range_once_and_mention_dark_images(make: Any) -> None:
    bit_depth._warn_once.cache_clear()
    with pytest.warns(UserWarning) as warned:
        for _ in range(3):
            assert grey(make(GREY * 256)) == RAMP.tolist()
            load_image(make(GREY * 16), "twelve bits in sixteen")
    assert len(warned) == 2
    assert "images with 16 bits per sample: 0 to 65,535 is taken as black to white" in str(warned[0].message)
    assert "an image with 16 bits per sample will be almost black" in str(warned[1].message)


def test_deep_images_are_counted_before_a_run(tmp_path: Path) -> None:
    contents = {"a.png": deep_png(GREY * 16), "b.tif": tiff(GREY * 16, 12), "c.tif": tiff(GREY, 32)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(RAMP).save(tmp_path / "d.png")
    found = inspect_images(find_images(tmp_path))
    assert found.count == 4 and found.depths == {16: 1, 12: 1} and found.dark == 1
    assert len(found.problems) == 1 and "c.tif" in found.problems[0]


# ---- formats


@pytest.mark.parametrize(
    ("name", "content", "told"),
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
    tmp_path: Path, name: str, content: bytes, told: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def ghostscript(*_: Any) -> None:
        raise AssertionError("Ghostscript was to be started")

    monkeypatch.setattr("PIL.EpsImagePlugin.Ghostscript", ghostscript)
    (tmp_path / name).write_bytes(content)
    for source in (tmp_path / name, content):
        with pytest.raises(UnreadableImage, match=told):
            load_image(source)
    (problem,) = find_problems([str(tmp_path / name)])
    assert told in problem and name in problem


@pytest.mark.parametrize("name", ["a.heic", "a.NEF", "a.svg", "a.jxl"])
def test_a_file_of_another_format_gets_advice_by_its_name(tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"hello")
    extension = Path(name).suffix.lower()
    if extension == ".heic" and has_heif():
        pytest.skip("pillow-heif is installed")
    advice = "to read them, `pip install pillow-heif`" if extension == ".heic" else "convert them to JPEG or PNG"
    with pytest.raises(
        UnreadableImage, match=f"it is not an image in a supported format. For {extension} files: {advice}"
    ):
        load_image(tmp_path / name)


def test_a_replaced_reader_of_pillow_hides_no_reason(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Once imported, Ultralytics reacts to an unknown file by importing a package that may be missing."""

    def replaced(*_: Any, **__: Any) -> None:
        raise ModuleNotFoundError("No module named 'pi_heif'")

    (tmp_path / "page.jpg").write_bytes(b"<!DOCTYPE html><html>404</html>")
    monkeypatch.setattr("PIL.Image.open", replaced)
    with pytest.raises(UnreadableImage, match="it is a web page"):
        load_image(tmp_path / "page.jpg")


@pytest.mark.parametrize(
    "extension", sorted({".jpg", ".jfif", ".avif", ".webp", ".tiff", ".bmp", ".gif", ".jp2", ".pcx"})
)
def test_every_format_is_found_and_read(tmp_path: Path, extension: str) -> None:
    Image.new("RGB", (16, 16), (200, 100, 50)).save(tmp_path / f"a{extension}")
    (found,) = find_images(tmp_path)
    assert np.abs(np.subtract(pixel(Path(found), 5, 5), (200, 100, 50))).max() <= 12  # GIF has a palette
    assert inspect_images([found]).problems == []


def test_an_image_that_would_fill_the_memory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    Image.new("L", (40, 40)).save(tmp_path / "bomb.png")
    Image.new("L", (40, 40)).save(tmp_path / "bomb.jpg")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 100)
    monkeypatch.setattr(inspection, "_MANY_PIXELS", 100)
    for problem in find_problems([str(tmp_path / "bomb.png"), str(tmp_path / "bomb.jpg")]):
        assert "may not fit into memory. Expected a smaller image; scale it down" in problem
    assert len(find_problems([str(tmp_path / "bomb.png"), str(tmp_path / "bomb.jpg")])) == 2
    with pytest.raises(UnreadableImage, match="may not fit into memory"):
        load_image(tmp_path / "bomb.png")


def test_heic_is_read_where_the_package_is() -> None:
    heif = pytest.importorskip("pillow_heif")
    buffer = io.BytesIO()
    heif.from_pillow(Image.new("RGB", (64, 64), (200, 100, 50))).save(buffer)
    assert np.abs(np.subtract(load_image(buffer.getvalue()).getpixel((5, 5)), (200, 100, 50))).max() <= 12


def test_transparency_is_laid_on_white(tmp_path: Path) -> None:
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


def damaged(folder: Path) -> dict[str, Path]:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    files = {}
    for kind in ("png", "jpg", "bmp"):
        noise.save(folder / f"whole.{kind}")
        content = (folder / f"whole.{kind}").read_bytes()
        files[f"truncated {kind}"] = folder / f"cut.{kind}"
        files[f"truncated {kind}"].write_bytes(content[: len(content) // 2])
    for name, content in {"empty.png": b"", "text.jpg": b"not a picture", "short.png": b"\x89PNG\r\n\x1a\n"}.items():
        files[name] = folder / name
        files[name].write_bytes(content)
    return files


def test_damage_is_named(tmp_path: Path) -> None:
    files = damaged(tmp_path)
    files["missing"] = tmp_path / "missing.png"
    for path in files.values():
        with pytest.raises(UnreadableImage, match=path.name):
            load_image(path)
    messages = find_problems(map(str, files.values()))
    assert len(messages) == len(files)
    assert all(path.name in message for path, message in zip(files.values(), messages, strict=True))
    assert find_problems(str(tmp_path / f"whole.{kind}") for kind in ("png", "jpg", "bmp")) == []


def test_trailing_bytes_are_no_damage(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"camera makers append things here")
    assert find_problems([str(tmp_path / "a.jpg")]) == []


def test_floating_point_is_refused_with_advice(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UnreadableImage, match="floating-point pixels have no agreed range"):
        load_image(tmp_path / "float.tiff")


def test_bytes_are_read_too() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "png")
    assert load_image(buffer.getvalue()).size == (8, 6)
    with pytest.raises(UnreadableImage, match="row 7"):
        load_image(b"xyz", "row 7")


def test_find_images_passes_over_the_rest(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "Thumbs.db", ".hidden.png", "deep/er/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "deep/er/c.webp"]
