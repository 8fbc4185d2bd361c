"""Data sets that need no download: Fashion-MNIST from Debian's package, handwritten digits from scikit-learn."""

from __future__ import annotations

import gzip
import hashlib
import os
from functools import cache
from pathlib import Path

import numpy as np

from acmix_zoo.data.sources.base import ArrayImages, Images, Source

FASHION_FOLDERS = ("/usr/share/datasets/fashion-mnist",)
FASHION_CLASSES = (
    "T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot",
)  # fmt: skip


class FashionMnist(Source):
    """60,000 training and 10,000 test pictures of garments, 28×28 grey, padded with black to 32×32.

    Looked for in $ACMIX_DATA, $ACMIX_DATA/fashion-mnist and where Debian's dataset-fashion-mnist puts it.

    Raises:
        FileNotFoundError: the four files are nowhere; the message names the package.
    """

    name = "fashion_mnist"
    license = "MIT"
    class_names = FASHION_CLASSES

    def __init__(self) -> None:
        places = [Path(place) for place in FASHION_FOLDERS]
        if own := os.environ.get("ACMIX_DATA"):
            places = [Path(own), Path(own, "fashion-mnist"), *places]
        for place in places:
            files = [_idx_file(place, name) for name in _IDX_NAMES]
            if all(files):
                packaged = str(place) in FASHION_FOLDERS
                self.origin = "Debian package dataset-fashion-mnist" if packaged else "files in ACMIX_DATA"
                self.files = [str(file) for file in files]
                return
        raise FileNotFoundError(
            f"fashion_mnist: {_IDX_NAMES[0]}[.gz] and its three companions are not in {', '.join(map(str, places))}; "
            "type `apt-get install dataset-fashion-mnist`, or set ACMIX_DATA to the folder that holds them"
        )

    def load(self) -> dict[str, Images]:
        images, labels, test_images, test_labels = (_read_idx(file) for file in self.files)
        return {"train": _padded(images, labels), "test": _padded(test_images, test_labels)}

    def fingerprint(self) -> str:
        # of the contents, so that compressed and plain files agree
        return _digest([_read_idx(file) for file in self.files])


class Digits(Source):
    """1,797 handwritten digits of 8×8 grey pixels (the test part of the UCI set), as scikit-learn ships them."""

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
        images = self.splits()["train"]
        assert isinstance(images, ArrayImages)
        return _digest([images.array, images.targets])


SHIPPED: dict[str, type[FashionMnist] | type[Digits]] = {"fashion_mnist": FashionMnist, "digits": Digits}

_IDX_NAMES = ("train-images-idx3-ubyte", "train-labels-idx1-ubyte", "t10k-images-idx3-ubyte", "t10k-labels-idx1-ubyte")


def _idx_file(folder: Path, name: str) -> Path | None:
    return next((file for file in (folder / f"{name}.gz", folder / name) if file.is_file()), None)


@cache  # 55 MB; read by load() and by fingerprint()
def _read_idx(file: str) -> np.ndarray:
    raw = gzip.decompress(Path(file).read_bytes()) if file.endswith(".gz") else Path(file).read_bytes()
    # header: two zero bytes, type (8 = unsigned byte), number of axes, then each axis as a big-endian 32-bit number
    if len(raw) < 8 or raw[:3] != b"\0\0\x08":
        raise ValueError(f"{file} is not an idx file of bytes; install it again")
    axes = raw[3]
    shape = tuple(np.frombuffer(raw, ">u4", axes, offset=4).tolist())
    values = np.frombuffer(raw, np.uint8, offset=4 + 4 * axes)
    if values.size != int(np.prod(shape)):
        raise ValueError(f"{file} announces {shape} bytes and holds {values.size}; install it again")
    return values.reshape(shape)


def _padded(images: np.ndarray, labels: np.ndarray) -> ArrayImages:
    grey = np.pad(images, ((0, 0), (2, 2), (2, 2)))[:, None]  # (N, 28, 28) -> (N, 1, 32, 32)
    return ArrayImages(grey, labels.astype(np.int64))


def _digest(arrays: list[np.ndarray]) -> str:
    digest = hashlib.sha256()
    for array in arrays:
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()[:16]
