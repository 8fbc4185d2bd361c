"""`Reader`: every image is read once, in reproducible order, however many readers there are."""

from pathlib import Path

import pyarrow as pa
import pytest
from pyarrow import parquet
from support.streams import SHARD_KINDS, make_stream, write_shards

from acmix_zoo.data.sources.stream_source import StreamSource
from acmix_zoo.data.stream.reader import Reader, ReaderPosition


@pytest.mark.parametrize("kind", SHARD_KINDS)
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 6])  # processes × workers; five files, of which one has one image
@pytest.mark.parametrize("shuffle", [0, 5])
def test_every_image_is_read_once(tmp_path: Path, kind: str, readers: int, shuffle: int) -> None:
    split = make_stream(tmp_path, kind)
    seen = [
        e.image().getpixel((0, 0)) for r in range(readers) for e in Reader(split, r, readers, shuffle=shuffle).once()
    ]
    assert sorted(seen) == [(n, n, n) for n in range(32)]


def images_of_pass(reader: Reader, turn: int) -> list[int]:
    found = []
    for example, _ in reader.endless(ReaderPosition(turn)):
        if example.turn > turn:
            return found
        found.append(example.image().getpixel((0, 0))[0])
    raise AssertionError("the stream has ended")


@pytest.mark.parametrize("kind", SHARD_KINDS)
def test_each_pass_has_every_image_once_in_its_own_order(tmp_path: Path, kind: str) -> None:
    split = make_stream(tmp_path, kind)
    orders = {
        (seed, turn): images_of_pass(Reader(split, 0, 1, seed=seed, shuffle=5), turn)
        for seed in (1, 2)
        for turn in (0, 1)
    }
    assert all(sorted(order) == list(range(32)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()} | {tuple(range(32))}) == 5
    assert orders[1, 1] == images_of_pass(Reader(split, 0, 1, seed=1, shuffle=5), 1)
    readers = [images_of_pass(Reader(split, r, 3, seed=1, shuffle=5), 2) for r in range(3)]
    assert sorted(n for found in readers for n in found) == list(range(32))


def test_readers_have_equally_many_images(tmp_path: Path) -> None:
    split = make_stream(tmp_path, "webdataset", (40,) * 5)
    for readers in (2, 3, 4, 5, 7, 16):
        counts = [sum(1 for _ in Reader(split, r, readers, seed=3).once()) for r in range(readers)]
        assert sum(counts) == 200
        assert max(counts) - min(counts) <= 4, counts  # of 12 to 100


def test_more_readers_than_images_are_rejected(tmp_path: Path) -> None:
    split = make_stream(tmp_path, "webdataset", (3,))
    with pytest.raises(ValueError, match=r"9 readers \(processes × workers\) are too many .* Lower data.num_workers"):
        [next(Reader(split, r, 9).endless(ReaderPosition())) for r in range(9)]


def test_a_truncated_shard_is_named(tmp_path: Path) -> None:
    split = make_stream(tmp_path, "webdataset", (4, 4))
    file = tmp_path / "set1k-train-0001.tar"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"set1k-train-0001.tar cannot be read beyond image \d.*. Download it again"):
        list(Reader(split, 0, 1).once())


@pytest.mark.parametrize("missing", [None, -1])
def test_images_without_a_class_are_left_out(tmp_path: Path, missing: int | None) -> None:
    """As if the table were read as a whole."""
    write_shards(tmp_path, "parquet", (7, 3))
    first = min(tmp_path.glob("*.parquet"))
    table = parquet.read_table(first)
    labels = pa.array([missing if n == 2 else n % 3 for n in range(7)], pa.int64())
    table = table.set_column(table.column_names.index("label"), table.schema.field("label"), labels)
    parquet.write_table(table, first, row_group_size=4)
    split = StreamSource(tmp_path).splits["train"]
    expected = [n for n in range(10) if n != 2]
    assert [e.image().getpixel((0, 0))[0] for e in Reader(split, 0, 1, shuffle=0).once()] == expected
    assert sorted(images_of_pass(Reader(split, 0, 1, shuffle=5), 1)) == expected
