"""Small data sets in shards. Image n is grey with value n, and its class is n % 3."""

import io
import tarfile
from collections.abc import Sequence
from pathlib import Path

import datasets
import pyarrow as pa
from PIL import Image
from pyarrow import parquet

from acmix_zoo.data.sources.stream_source import StreamSource, StreamSplit

SHARD_KINDS = ["parquet", "webdataset"]
SHARD_SIZES = (7, 3, 12, 1, 9)
"""Images per file of `make_stream`: more files than readers or fewer, and one file with a single image."""


def encode_png(number: int) -> bytes:
    """Return image `number` as a PNG file."""
    content = io.BytesIO()
    Image.new("RGB", (8, 8), (number, number, number)).save(content, "PNG")
    return content.getvalue()


def write_parquet(
    file: Path, numbers: Sequence[int], rows: int = 1000, bad: Sequence[int] = (), label: int = 0
) -> None:
    """Write a parquet file of the images `numbers`.

    Args:
        rows: number of rows per row group.
        bad: numbers of images that are unreadable.
        label: -1 to leave out the classes.
    """
    features = datasets.Features({"image": datasets.Image(), "label": datasets.ClassLabel(names=["cat", "dog", "emu"])})
    images = [{"bytes": b"broken" if n in bad else encode_png(n), "path": f"{n}.png"} for n in numbers]
    table = pa.table({"image": images, "label": [label or n % 3 for n in numbers]}, schema=features.arrow_schema)
    file.parent.mkdir(parents=True, exist_ok=True)
    parquet.write_table(table, file, row_group_size=rows)


def write_tar(
    file: Path,
    numbers: Sequence[int],
    bad: Sequence[int] = (),
    classes: bool = True,
    class_names: Sequence[object] = (0, 1, 2),
) -> None:
    """Write a tar file of the images `numbers`, of which those in `bad` are unreadable."""
    file.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(file, "w") as tar:
        for n in numbers:
            members = {"png": b"broken" if n in bad else encode_png(n)}
            members |= {"cls": str(class_names[n % 3]).encode()} if classes else {}
            for field, content in (members | {"json": b'{"width": 8}'}).items():
                entry = tarfile.TarInfo(f"some/{n:04d}.{field}")
                entry.size = len(content)
                tar.addfile(entry, io.BytesIO(content))


def write_shards(root: Path, kind: str, sizes: Sequence[int], split: str = "train", bad: Sequence[int] = ()) -> int:
    """Write one file for each of `sizes`, with images numbered from 0, and return their number.

    Parquet files have row groups of four images.
    """
    start = 0
    for place, size in enumerate(sizes):
        numbers = range(start, start + size)
        if kind == "parquet":
            write_parquet(root / f"{split}-{place:05d}-of-{len(sizes):05d}.parquet", numbers, rows=4, bad=bad)
        else:
            write_tar(root / f"set1k-{split}-{place:04d}.tar", numbers, bad=bad)
        start += size
    return start


def make_stream(root: Path, kind: str, sizes: Sequence[int] = SHARD_SIZES, bad: Sequence[int] = ()) -> StreamSplit:
    """Write shards, and return their training split."""
    write_shards(root, kind, sizes, bad=bad)
    return StreamSource(root).splits["train"]
