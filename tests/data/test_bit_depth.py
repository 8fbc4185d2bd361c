"""Images with more than 8 bits per sample are scaled by the range that the file declares."""

import io
import struct
import warnings
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from acmix_zoo.data import (
    UnreadableImage,
    bit_depth,
    load_image,
)
from acmix_zoo.data.inspection import inspect_images
from acmix_zoo.data.sources.find_images import walk_folders

RAMP = np.arange(48, dtype=np.uint8).reshape(6, 8) * 5  # (H, W)


GREY = RAMP.astype(np.uint32)


def tiff(values: np.ndarray, bits: int, kind: int = 1, maximum: int = 0) -> bytes:
    """Return an uncompressed grey TIFF of unsigned (kind 1) or signed (2) integers, with a MaxSampleValue if given.

    Args:
        values: (H, W) integers.
    """
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


def load_grey(content: bytes) -> list[list[int]]:
    image = load_image(content, "deep")
    assert image.mode == "RGB"
    pixels = np.asarray(image)
    assert (pixels == pixels[..., :1]).all()
    return pixels[..., 0].tolist()


def deep_png(values: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(values.astype(np.uint16)).save(buffer, "png")
    return buffer.getvalue()


def colour_png(values: np.ndarray) -> bytes:
    """Return a PNG of 16-bit RGB, which Pillow reads but does not write."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    height, width = values.shape
    rows = np.repeat(values.astype(">u2")[..., None], 3, 2).reshape(height, -1)  # (H, 3W)
    data = b"".join(b"\0" + row.tobytes() for row in rows)
    header = struct.pack(">IIBBBBB", width, height, 16, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(data)) + chunk(b"IEND", b"")


@pytest.mark.filterwarnings("ignore:images with")
@pytest.mark.parametrize("kind", ["png", "tiff", "pgm"])
def test_sixteen_bits_keep_the_upper_eight(tmp_path: Path, kind: str) -> None:
    Image.fromarray(RAMP.astype(np.uint16) * 256 + 17).save(tmp_path / f"deep.{kind}")
    assert load_grey((tmp_path / f"deep.{kind}").read_bytes()) == RAMP.tolist()


@pytest.mark.filterwarnings("ignore:images with")
@pytest.mark.parametrize(("bits", "maximum", "factor"), [
    (12, 0, 16), (16, 0, 256), (16, 4095, 16), (16, 255, 1), (32, 4095, 16), (32, 2**20 - 1, 4096),
    (32, 2**24 - 1, 65536), (16, 4000, 256),  # not 2**n - 1, so it may be the maximum of this image only
])  # fmt: skip
def test_the_range_is_what_the_file_declares(bits: int, maximum: int, factor: int) -> None:
    assert load_grey(tiff(GREY * factor, bits, maximum=maximum)) == RAMP.tolist()
    half = tiff(GREY // 2 * factor, bits, maximum=maximum)  # the values of the image do not matter
    assert load_grey(half) == (RAMP // 2).tolist()


@pytest.mark.filterwarnings("ignore:images with")
def test_all_values_of_32_bits_are_kept() -> None:
    values = np.array([[0, 2**30, 2**31 - 1], [2**31, 3 * 2**30, 2**32 - 1]])
    content = tiff(values.astype(np.uint32), 32, maximum=2**32 - 1)
    assert load_grey(content) == [[0, 64, 127], [128, 192, 255]]


@pytest.mark.parametrize(("bits", "kind"), [(32, 1), (32, 2), (16, 2), (8, 2)])
def test_values_without_a_known_range_are_rejected(bits: int, kind: int) -> None:
    with pytest.raises(
        UnreadableImage, match=f"{bits}-bit integer pixels have no agreed range. Save the image with 8 or 16"
    ):
        load_image(tiff(GREY // 2, bits, kind), "deep")


def test_floating_point_is_rejected_with_advice(tmp_path: Path) -> None:
    Image.fromarray(RAMP.astype(np.float32)).save(tmp_path / "float.tiff")
    with pytest.raises(UnreadableImage, match="floating-point pixels have no agreed range"):
        load_image(tmp_path / "float.tiff")


def test_a_maximum_makes_signed_values_readable() -> None:
    values = (GREY * 16).astype(np.int32)
    values[0, 0] = -7
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert load_grey(tiff(values, 16, 2, 4095)) == RAMP.tolist()


def test_a_pgm_is_scaled_by_the_maximum_in_its_header() -> None:
    content = b"P5\n8 6\n4095\n" + (GREY * 16 + 8).astype(">u2").tobytes()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert np.abs(np.subtract(load_grey(content), RAMP)).max() <= 1  # Pillow scales by 65535 / 4095


@pytest.mark.parametrize("make", [deep_png, colour_png])
def test_warnings_give_the_range_once_and_mention_dark_images(make: Any) -> None:
    bit_depth._warn_once.cache_clear()
    with pytest.warns(UserWarning) as warned:
        for _ in range(3):
            assert load_grey(make(GREY * 256)) == RAMP.tolist()
            load_image(make(GREY * 16), "twelve bits in sixteen")
    assert len(warned) == 2
    assert "images with 16 bits per sample: black to white is 0 to 65,535" in str(warned[0].message)
    assert "an image with 16 bits per sample will be almost black" in str(warned[1].message)


def test_deep_images_are_counted_before_a_run(tmp_path: Path) -> None:
    contents = {"a.png": deep_png(GREY * 16), "b.tif": tiff(GREY * 16, 12), "c.tif": tiff(GREY, 32)}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(content)
    Image.fromarray(RAMP).save(tmp_path / "d.png")
    found = inspect_images(walk_folders([tmp_path]).images[0])
    assert found.count == 4 and found.depths == {16: 1, 12: 1} and found.dark == 1
    assert len(found.problems) == 1 and "c.tif" in found.problems[0]
