"""Data sets that need no download: Fashion-MNIST from a Debian package, and handwritten digits from scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import os
from functools import cache
from pathlib import Path

import numpy as np

from acmix_zoo.data.sources.base import IndexedSource
from acmix_zoo.data.sources.image_sets import ArrayImages, Images

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMnist(IndexedSource):
    """Fashion-MNIST: 60,000 training and 10,000 test images of garments, 28×28 grey, padded with black to 32×32.

    The files are looked for in $ACMIX_DATA, $ACMIX_DATA/fashion-mnist and the folder of Debian's
    dataset-fashion-mnist.

    Raises:
        FileNotFoundError: the four files are in none of these folders. The message names the package.
    """

    name = "fashion_mnist"
    license = "MIT"
    class_names = FASHION_CLASSES

    def __init__(self) -> None:
        folders = [Path(folder) for folder in FASHION_FOLDERS]
        if own_folder := os.environ.get("ACMIX_DATA"):
            folders = [Path(own_folder), Path(own_folder, "fashion-mnist"), *folders]
        for folder in folders:
            files = [_idx_file(folder, name) for name in _IDX_NAMES]
            if all(files):
                is_packaged = str(folder) in FASHION_FOLDERS
                self.origin = "Debian package dataset-fashion-mnist" if is_packaged else "files in ACMIX_DATA"
                self.files = [str(file) for file in files]
                return
        raise FileNotFoundError(
            f"the data set fashion_mnist is not installed. Expected {_IDX_NAMES[0]}[.gz] and three more files in "
            f"{' or '.join(map(str, folders))}. Run `apt-get install dataset-fashion-mnist`, or set ACMIX_DATA to the "
            "folder with the files"
        )

    def load(self) -> dict[str, Images]:
        images, labels, test_images, test_labels = (_read_idx(file) for file in self.files)
        return {"train": _padded(images, labels), "test": _padded(test_images, test_labels)}

    def fingerprint(self) -> str:
        # a hash of the contents, so that compressed and plain files agree
        return _digest([_read_idx(file) for file in self.files])


class Digits(IndexedSource):
    """1,797 handwritten digits of 8×8 grey pixels from scikit-learn (the test part of the UCI data set)."""

    name = "digits"
    origin = "scikit-learn"
    license = "CC-BY-4.0"
    class_names = tuple("0123456789")

    def load(self) -> dict[str, Images]:
        from sklearn.datasets import load_digits

        digits = load_digits()
        grey = np.rint(digits.images * (255 / 16)).astype(np.uint8)  # (1797, 8, 8), 0..16 before
        return {"train": ArrayImages(grey[:, None], digits.target.astype(np.int64))}

    def fingerprint(self) -> str:
        images = self.splits["train"]
        assert isinstance(images, ArrayImages)
        return _digest([images.array, images.targets])


SHIPPED: dict[str, type[FashionMnist] | type[Digits]] = {"fashion_mnist": FashionMnist, "digits": Digits}
"""The data sets of this file by name."""


def open_shipped(name: str) -> IndexedSource:
    """Open one of `SHIPPED`. Add a remark if there is also a folder with this name."""
    source = SHIPPED[name]()
    if Path(name).is_dir():
        folder = Path(name).resolve()
        source.remarks = [f"these are the shipped images, not those in {folder}. For those, use ./{name}"]
    return source


_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_file(folder: Path, name: str) -> Path | None:
    """Return the path of a file in the format of MNIST, compressed or not; None if it does not exist."""
    return next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)


@cache  # 55 MB, needed by load() and by fingerprint()
def _read_idx(file: str) -> np.ndarray:
    """Read an array of bytes in the format of MNIST."""
    raw = gzip.decompress(Path(file).read_bytes()) if file.endswith(".gz") else Path(file).read_bytes()
    # header: two zero bytes, type (8 = unsigned byte), number of axes, then each axis as a big-endian 32-bit number
    if len(raw) < 8 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is damaged. Expected an idx file of bytes. Install it again")
    axes = raw[3]
    shape = tuple(np.frombuffer(raw, ">u4", axes, offset=4).tolist())
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{file} has {values.size} bytes. Expected an array of shape {shape}. Install it again")
    return values.reshape(shape)


def _padded(images: np.ndarray, labels: np.ndarray) -> ArrayImages:
    """Pad images from 28×28 to 32×32 pixels."""
    grey = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]  # (N, 28, 28) -> (N, 1, 32, 32)
    return ArrayImages(grey, labels.astype(np.int64))


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
