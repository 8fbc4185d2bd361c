"""One picture: every kind is read as RGB, every kind of damage is named."""

import io
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import BadImage, load_image
from acmix_zoo.data.images import bad_images, find_images

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


@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 256 + 17).save(tmp_path / f"deep.{kind}")
    assert pixel(tmp_path / f"deep.{kind}", 3, 2) == (95, 95, 95)


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
        with pytest.raises(BadImage, match=path.name):
            load_image(path)
    messages = bad_images(map(str, files.values()))
    assert len(messages) == len(files)
    assert all(path.name in message for path, message in zip(files.values(), messages, strict=True))
    assert bad_images(str(tmp_path / f"whole.{kind}") for kind in ("png", "jpg", "bmp")) == []


def test_trailing_bytes_are_no_damage(tmp_path: Path) -> None:
    Image.fromarray(RAMP).save(tmp_path / "a.jpg")
    with open(tmp_path / "a.jpg", "ab") as file:
        file.write(b"camera makers append things here")
    assert bad_images([str(tmp_path / "a.jpg")]) == []


def test_floating_point_is_refused_with_advice(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(BadImage, match="8 or 16 bits"):
        load_image(tmp_path / "float.tiff")


def test_bytes_are_read_too() -> None:
    buffer = io.BytesIO()
    Image.fromarray(RAMP).save(buffer, "png")
    assert load_image(buffer.getvalue()).size == (8, 6)
    with pytest.raises(BadImage, match="row 7"):
        load_image(b"xyz", "row 7")


def test_find_images_passes_over_the_rest(tmp_path: Path) -> None:
    for name in ("b.png", "a.JPG", "notes.txt", "Thumbs.db", ".hidden.png", "deep/er/c.webp", ".cache/d.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    found = [Path(path).relative_to(tmp_path).as_posix() for path in find_images(tmp_path)]
    assert found == ["a.JPG", "b.png", "deep/er/c.webp"]
