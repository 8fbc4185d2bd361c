"""Fashion-MNIST from Debian's package or from files, and the digits of scikit-learn."""

import gzip
from pathlib import Path

import numpy as np
import pytest

from acmix_zoo.data import (
    open_source,
)
from acmix_zoo.data.sources import installed_sources
from acmix_zoo.data.sources.image_sets import ArrayImages


def test_fashion_mnist(fashion_mnist: str) -> None:
    source = open_source(fashion_mnist)
    train, test = (source.splits[split] for split in ("train", "test"))
    assert (len(train), len(test), source.license) == (60_000, 10_000, "MIT")
    assert np.bincount(train.targets).tolist() == [6000] * 10
    assert isinstance(train, ArrayImages) and train.array.shape == (60_000, 1, 32, 32)
    assert train.array[:, :, :2].max() == 0 and train.array[:100, :, 2:30].max() == 255


def test_missing_fashion_mnist_names_the_package_to_install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(installed_sources, "FASHION_FOLDERS", (str(tmp_path / "not"),))
    monkeypatch.delenv("ACMIX_DATA", raising=False)
    with pytest.raises(FileNotFoundError, match="apt-get install dataset-fashion-mnist"):
        open_source("fashion_mnist")


def idx(values: np.ndarray) -> bytes:
    """Return an array of bytes in the file format of MNIST."""
    return bytes([0, 0, 8, values.ndim]) + np.array(values.shape, ">u4").tobytes() + values.tobytes()


def test_fashion_mnist_is_read_from_acmix_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACMIX_DATA", str(tmp_path))
    monkeypatch.setattr(installed_sources, "FASHION_FOLDERS", ())
    for part, count in (("train", 20), ("t10k", 10)):
        images = np.arange(count * 784, dtype=np.uint8).reshape(count, 28, 28)
        (tmp_path / f"{part}-images-idx3-ubyte").write_bytes(idx(images))
        labels = idx(np.arange(count, dtype=np.uint8) % 10)
        (tmp_path / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    splits = open_source("fashion_mnist").splits
    assert (len(splits["train"]), len(splits["test"])) == (20, 10)
    (tmp_path / "train-images-idx3-ubyte").write_bytes(idx(images)[:-5])
    installed_sources._read_idx.cache_clear()
    with pytest.raises(ValueError, match=r"has 7835 bytes. Expected an array of shape \(10, 28, 28\)"):
        _ = open_source("fashion_mnist").splits


def test_digits() -> None:
    source = open_source("digits")
    images = source.splits["train"]
    assert len(images) == 1797 and source.class_names == tuple("0123456789")
    assert isinstance(images, ArrayImages) and images.array.shape == (1797, 1, 8, 8) and images.array.max() == 255
