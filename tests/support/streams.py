"""Small data sets in shards, as the tests write them: picture n is of one colour, n, and its class is n % 3."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from PIL import Image
from pyarrow import parquet


def encoded(number: int) -> bytes:
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, number, number)).save(content, "PNG")
    return content.getvalue()


def write_parquet(
    file: Path, numbers: Sequence[int], rows: int = 1000, bad: Sequence[int] = (), label: int = 0
) -> None:
    """`rows` a row group; those in `bad` are no pictures; `label` replaces the class when it is -1."""
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])})
    images = [{"bytes": b"broken" if n in bad else encoded(n), "path": f"{n}.png"} for n in numbers]
    table = pa.table({"image": images, "label": [label or n % 3 for n in numbers]}, schema=features.arrow_schema)
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=rows)


def write_tar(file: Path, numbers: Sequence[int], bad: Sequence[int] = (), classes: bool = True) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for n in numbers:
            members = {"png": b"broken" if n in bad else encoded(n)}
            members |= {"cls": str(n % 3).encode()} if classes else {}
            for field, content in (members | {"json": b'{"width": 8}'}).items():
                entry = tarfile.TarInfo(f"some/{n:04d}.{field}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def shards(root: Path, kind: str, sizes: Sequence[int], split: str = "train", bad: Sequence[int] = ()) -> int:
    """One file of so many pictures each, numbered through from 0; parquet files have row groups of four."""
    start = 0
    for place, size in enumerate(sizes):
        numbers = range(start, start + size)
        if kind == "parquet":
            write_parquet(root / f"{split}-{place:05d}-of-{len(sizes):05d}.parquet", numbers, rows=4, bad=bad)
        else:
            write_tar(root / f"set1k-{split}-{place:04d}.tar", numbers, bad=bad)
        start += size
    return start
