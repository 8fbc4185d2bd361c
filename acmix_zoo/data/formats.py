"""Which files count as images: supported formats and file names, and advice for all other files."""

from __future__ import annotations

import os
from functools import cache
from importlib.util import find_spec

from PIL import features

# Pillow's names. Only these formats are tried, whatever the file name: Pillow would pass PostScript to Ghostscript, and
# its readers for rare formats are not well tested. TGA is left out because its files have no signature.
FORMATS = ("JPEG", "PNG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000", "QOI", "PCX", "SGI")

EXTENSIONS = frozenset({
    ".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".apng", ".webp", ".gif", ".bmp", ".dib", ".tif", ".tiff", ".pbm",
    ".pgm", ".ppm", ".pnm", ".avif", ".avifs", ".jp2", ".j2k", ".j2c", ".jpc", ".jpf", ".jpx", ".qoi", ".pcx",
    ".sgi",
})  # fmt: skip
HEIC = frozenset({".heic", ".heif", ".hif"})

_RAW = frozenset({
    ".dng", ".cr2", ".cr3", ".nef", ".nrw", ".arw", ".orf", ".rw2", ".raf", ".pef", ".srw", ".3fr",
})  # fmt: skip
_OTHER_IMAGES = frozenset({
    ".jxl", ".jxr", ".svg", ".svgz", ".eps", ".ps", ".ai", ".pdf", ".psd", ".xcf", ".tga", ".ico", ".icns", ".cur",
    ".exr", ".hdr", ".pfm", ".fits", ".fit", ".dcm", ".nii", ".mrxs", ".svs", ".ndpi", ".wmf", ".emf", ".dds",
    ".xbm", ".xpm", ".djvu",
})  # fmt: skip
_FOLDERS_OF_SYSTEMS = frozenset({
    "__macosx", "@eadir", "#recycle", "$recycle.bin", "system volume information", "lost+found", "__pycache__",
})  # fmt: skip
_HEIC_BRANDS = frozenset({b"heic", b"heix", b"heim", b"heis", b"hevc", b"hevx", b"hevm", b"hevs", b"mif1", b"msf1"})
_SIGNATURES = (
    (b"%!PS", "a PostScript file"),
    (b"\xc5\xd0\xd3\xc6", "a PostScript file"),
    (b"%PDF", "a PDF file"),
    (b"8BPS", "a Photoshop file"),
    (b"<svg", "an SVG drawing"),
    (b"<!doctype html", "a web page, perhaps a failed download"),
    (b"<html", "a web page, perhaps a failed download"),
    (b"<?xml", "an XML file"),
    (b"\xff\x0a", "a JPEG XL file"),
    (b"\0\0\0\x0cJXL ", "a JPEG XL file"),
    (b"PK\x03\x04", "a zip archive"),
    (b"version https://git-lfs", "a Git LFS pointer; `git lfs pull` fetches the image"),
)


@cache
def has_heif() -> bool:
    """Return whether the package pillow-heif, which reads HEIC photographs, is installed."""
    return find_spec("pillow_heif") is not None


@cache
def open_formats() -> tuple[str, ...]:
    """Return Pillow's names of the supported formats, including HEIF if pillow-heif is installed."""
    if not has_heif():
        return FORMATS
    from pillow_heif import register_heif_opener  # type: ignore[import-not-found, unused-ignore]

    register_heif_opener()
    return (*FORMATS, "HEIF")


def is_hidden(name: str) -> bool:
    """Return whether a file or folder is hidden (.git, .DS_Store, ._photo.jpg) or belongs to an operating system."""
    return name.startswith(".") or name.lower() in _FOLDERS_OF_SYSTEMS


def is_image_name(name: str) -> bool:
    """Return whether a file has the extension of a supported image format and is not hidden."""
    extension = os.path.splitext(name)[1].lower()
    return not is_hidden(name) and (extension in EXTENSIONS or (extension in HEIC and has_heif()))


def skip_advice(extension: str) -> str:
    """Return advice on skipped files with this extension (lower case, with the dot), as an imperative."""
    if extension in HEIC:
        return "to read them, `pip install pillow-heif`"
    if not extension:
        return "if they are images, give them an extension such as .jpg"
    return "convert them to JPEG or PNG"


def is_unsupported_image(extension: str) -> bool:
    """Return whether a file with this extension, or without one, is probably an image in an unsupported format."""
    return extension in HEIC or extension in _RAW or extension in _OTHER_IMAGES or not extension


def content_kind(head: bytes, name: str = "") -> str:
    """Return what a file in none of the `FORMATS` appears to be, judging by its first bytes.

    Args:
        name: the name of the file, if there is one. If the bytes are unknown, its extension decides on the advice.
    """
    if not head:
        return "an empty file"
    if head[4:8] == b"ftyp":
        return _boxed_kind(head[8:12])
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower() if head[:1] in b"\xef \t\r\n<" else head
    for signature, kind in _SIGNATURES:
        if start.startswith(signature):
            return kind
    extension = os.path.splitext(name)[1].lower()
    if extension and is_unsupported_image(extension) and not (extension in HEIC and has_heif()):
        return f"not an image in a supported format. For {extension} files: {skip_advice(extension)}"
    return "not an image"


def _boxed_kind(brand: bytes) -> str:
    """Return what a file in the ISO base media format (HEIC, AVIF, MP4, ...) is, given its brand."""
    if brand in _HEIC_BRANDS:
        return "a HEIC photograph" + ("" if has_heif() else "; to read it: pip install pillow-heif")
    if brand in (b"avif", b"avis"):
        return "an AVIF image" + (
            ""
            if features.check("avif")
            else ", which this build of Pillow cannot read; to read it: pip install -U pillow"
        )
    return "a raw photograph; convert it to JPEG or PNG" if brand == b"crx " else "a video"
