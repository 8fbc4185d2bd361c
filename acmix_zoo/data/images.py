"""Read one image of any supported format as 8-bit RGB."""

from __future__ import annotations

import warnings
from io import BytesIO
from pathlib import Path

from PIL import Image, UnidentifiedImageError

from acmix_zoo.data.bit_depth import is_dark, sample_bits, scale_to_rgb, warn_of_range
from acmix_zoo.data.formats import content_kind, open_formats

_ORIENTATION = 0x0112  # the EXIF tag; values above 4 swap width and height
# How to turn an image upright. `ImageOps.exif_transpose` would also rewrite the other tags, which fails if one is odd.
_UPRIGHT = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}


class UnreadableImage(ValueError):
    """An image file, or the cell of a table, cannot be read. The message states which and why."""

    def __init__(self, message: str) -> None:
        # PyTorch's loader rebuilds an exception of a worker process from its traceback, which ends with our message.
        super().__init__(message.rpartition("UnreadableImage: ")[2].strip())


def load_image(source: str | Path | bytes, name: str | None = None) -> Image.Image:
    """Return an image as 8-bit RGB of size (W, H).

    Grey images are repeated over the channels, and palettes are resolved. Samples with more than 8 bits are scaled as
    `acmix_zoo.data.bit_depth` describes, with one warning that states the range. Transparent images get a white
    background, CMYK is converted, the first frame of an animation is used, and a camera's orientation tag is applied.
    HEIC is supported if the package pillow-heif is installed.

    Args:
        source: a path, or the bytes of a file.
        name: name of the image for error messages; the path by default.

    Raises:
        UnreadableImage: the file is missing, empty, truncated or corrupt, is not in one of
            `acmix_zoo.data.formats.FORMATS`, is larger than twice `PIL.Image.MAX_IMAGE_PIXELS`, or has pixel values of
            unknown range.
    """
    image, bits = load_with_bits(source, name)
    if bits > 8:
        warn_of_range(bits, is_dark(image))
    return image


def load_with_bits(source: str | Path | bytes, name: str | None = None) -> tuple[Image.Image, int]:
    """Return an image as `load_image` does, without a warning, and the number of bits per sample in its file."""
    label = name or (f"{len(source)} bytes" if isinstance(source, bytes) else str(source))
    file = BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)  # large images are welcome
            with Image.open(file, formats=open_formats()) as image:
                bits = sample_bits(image)
                image.load()
                return _to_rgb(upright(image), bits), bits
    except FileNotFoundError:
        raise UnreadableImage(f"image {label} does not exist") from None
    except IsADirectoryError:
        raise UnreadableImage(f"image {label} is a folder. Expected the file of one image") from None
    except Exception as error:  # broken bytes raise OSError, SyntaxError, struct.error, …, depending on the format
        if isinstance(error, MemoryError):
            raise
        raise UnreadableImage(f"image {label} cannot be read: {_reason(error, source)}") from error


def image_size(source: str | Path | bytes) -> tuple[int, int] | None:
    """Return the (width, height) of an image as `load_image` returns it, from the header of its file.

    Args:
        source: a path, or the bytes of a file.

    Returns:
        The size, or None if the file cannot be read. The loader of the image reports why.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", Image.DecompressionBombWarning)
            with Image.open(BytesIO(source) if isinstance(source, bytes) else source, formats=open_formats()) as image:
                is_turned = image.format != "TIFF" and _orientation(image) > 4
                return (image.height, image.width) if is_turned else image.size
    except Exception as error:  # broken bytes raise almost any exception
        if isinstance(error, MemoryError):
            raise
        return None


def upright(image: Image.Image) -> Image.Image:
    """Return a loaded image turned by its orientation tag, as viewers show it. Modes and values stay the same."""
    turn = _UPRIGHT.get(_orientation(image))
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """Return the value of the orientation tag; 1, for upright, if it has none or not one of the eight values."""
    # The method of PNG files would decode the image to look for an orientation after the pixels.
    value = Image.Image.getexif(image).get(_ORIENTATION, 1)
    return value if value in _UPRIGHT else 1


def _to_rgb(image: Image.Image, bits: int) -> Image.Image:
    if image.mode.startswith("I"):  # I;16 and its variants, or I: 32-bit integers, whose samples may use fewer bits
        return scale_to_rgb(image, bits)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
        return Image.alpha_composite(white, rgba).convert("RGB")
    return image if image.mode == "RGB" else image.convert("RGB")


def _reason(error: Exception, source: str | Path | bytes) -> str:
    """Return why an image cannot be read, and what to do if that is known."""
    if isinstance(error, Image.DecompressionBombError):
        limit = 2 * (Image.MAX_IMAGE_PIXELS or 0) / 1e6
        return (
            f"it has more than {limit:.0f} million pixels and may not fit into memory. Expected a smaller image. Scale "
            "it down, or raise PIL.Image.MAX_IMAGE_PIXELS if you trust the file"
        )
    # Ultralytics replaces Image.open by a function that imports more packages for files unknown to Pillow.
    if not isinstance(error, UnidentifiedImageError | ImportError):
        return str(error) or type(error).__name__
    if isinstance(source, bytes):
        return f"it is {content_kind(source[:64])}"
    with open(source, "rb") as file:
        return f"it is {content_kind(file.read(64), str(source))}"
