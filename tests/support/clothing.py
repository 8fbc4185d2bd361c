"""A few of the photographs in examples/clothing.zip."""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path
from zipfile import ZipFile

ARCHIVE = Path(__file__).resolve().parents[2] / "examples/clothing.zip"
CLASSES = ("dress", "hat", "pants", "shoes", "t-shirt")
TWO_CLASSES = ("dress", "shoes")
# The command in the documents. Readers of the tests get the folder without it, and with fewer images.
UNPACK = ["python", "-m", "zipfile", "-e", "examples/clothing.zip", "."]


def write_clothing(path: Path, images: int, classes: Collection[str] = TWO_CLASSES) -> Path:
    """Write a smaller archive, with the folders clothing/train, val and test.

    Args:
        path: the file.
        images: number of photographs of each class and split, at most.
        classes: the classes.
    """
    with ZipFile(ARCHIVE) as archive, ZipFile(path, "w") as smaller:
        for name in archive.namelist():
            if name.split("/")[2] in classes and int(Path(name).stem) <= images:
                smaller.writestr(name, archive.read(name))
    return path
