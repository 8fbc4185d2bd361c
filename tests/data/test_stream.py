"""Streams of shards: every image once whoever reads, orders that can be had again, and places to go on from."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("datasets")
pytest.importorskip("lightning")

from support.streams import shards, write_parquet, write_tar
from torch import Tensor

from acmix_zoo.data import UnreadableImage
from acmix_zoo.data.augment import Augment, Pixels
from acmix_zoo.data.sources.stream_source import StreamSource, StreamSplit
from acmix_zoo.data.stream.batch_stream import BatchMaker, EvalStream, TrainStream
from acmix_zoo.data.stream.reader import Reader, ReaderPosition

PIXELS = Pixels(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", 1.0)
SIZES = (7, 3, 12, 1, 9)
KINDS = ["parquet", "webdataset"]


def stream_of(root: Path, kind: str, sizes: tuple[int, ...] = SIZES, **kwargs: Any) -> StreamSplit:
    shards(root, kind, sizes, **kwargs)
    return StreamSource(root).splits["train"]


def numbers(images: Tensor) -> list[int]:
    """Which pictures these are: (B, 3, S, S) of one colour each."""
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def maker_of(split: StreamSplit, *, rank: int = 0, world: int = 1, augment: str = "none", **kwargs: Any) -> BatchMaker:
    made = BatchMaker(split, Augment(PIXELS, augment), kwargs.pop("batch_size", 4), **{"seed": 1, **kwargs})
    made.rank, made.world = rank, world
    return made


# ---- what is found


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_knows_its_data_before_it_reads(tmp_path: Path, kind: str) -> None:
    shards(tmp_path, kind, SIZES)
    shards(tmp_path, kind, (5,), split="validation")
    source = StreamSource(tmp_path)
    assert {name: split.size for name, split in source.splits.items()} == {"train": 32, "val": 5}
    names = {"parquet": ("cat", "dog", "emu"), "webdataset": ("0", "1", "2")}
    assert source.class_names == names[kind] and source.name == tmp_path.name
    before = source.fingerprint()
    assert StreamSource(tmp_path).fingerprint() == before
    shards(tmp_path, kind, (6,), split="validation")
    assert StreamSource(tmp_path).fingerprint() != before


@pytest.mark.parametrize("kind", KINDS)
def test_a_stream_has_what_the_table_has(tmp_path: Path, kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    import datasets

    from acmix_zoo.data import open_source

    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "cache")
    split = stream_of(tmp_path / "set", kind)
    table = open_source(tmp_path / "set").splits["train"]
    streamed = list(Reader(split, 0, 1, shuffle=0).once())
    assert [example.label for example in streamed] == table.targets.tolist()
    assert [example.image().getpixel((0, 0)) for example in streamed] == [(n, n, n) for n in range(32)]
    assert table.image(31).getpixel((0, 0)) == (31, 31, 31)


def test_names_for_bare_numbers(tmp_path: Path) -> None:
    shards(tmp_path / "set", "webdataset", (6,))
    (tmp_path / "set" / "classes.txt").write_text("ant\nbee\ncow\ndoe\n")
    assert StreamSource(tmp_path / "set").class_names == ("ant", "bee", "cow", "doe")
    (tmp_path / "own.txt").write_text("x\ny\nz\n")
    source = StreamSource(tmp_path / "set", classes_file=str(tmp_path / "own.txt"))
    assert source.class_names == ("x", "y", "z")
    assert [e.label for e in Reader(source.splits["train"], 0, 1).once()] == [0, 1, 2, 0, 1, 2]
    (tmp_path / "own.txt").write_text("x\ny\n")
    source = StreamSource(tmp_path / "set", classes_file=str(tmp_path / "own.txt"))
    with pytest.raises(ValueError, match=r"image 2 \(0002.png\) has the unknown class 2. Expected one of 2 classes"):
        list(Reader(source.splits["train"], 0, 1, shuffle=0).once())


def test_a_published_count_is_believed(tmp_path: Path) -> None:
    shards(tmp_path, "webdataset", (6, 2))
    names = '["set1k-train-0000.tar", "set1k-train-0001.tar"]'
    (tmp_path / "_info.json").write_text(
        f'{{"splits": {{"train": {{"filenames": {names}, "shard_lengths": [6, 99]}}}}}}'
    )
    assert StreamSource(tmp_path).splits["train"].size == 105


def test_folders_named_as_splits(tmp_path: Path) -> None:
    write_tar(tmp_path / "train/00000.tar", range(6))
    write_tar(tmp_path / "validation/00000.tar", range(4))
    assert {name: split.size for name, split in StreamSource(tmp_path).splits.items()} == {"train": 6, "val": 4}
    assert StreamSource(tmp_path / "validation/00000.tar").splits["train"].size == 4  # by itself


@pytest.mark.parametrize("kind", KINDS)
def test_a_split_without_labels_is_left_out(tmp_path: Path, kind: str) -> None:
    shards(tmp_path, kind, (6,))
    if kind == "parquet":
        write_parquet(tmp_path / "test-00000-of-00001.parquet", range(4), label=-1)
    else:
        write_tar(tmp_path / "set1k-test-0000.tar", range(4), classes=False)
    assert list(StreamSource(tmp_path).splits) == ["train"]


def test_what_cannot_be_streamed(tmp_path: Path) -> None:
    (tmp_path / "pets/cat").mkdir(parents=True)
    for source in (tmp_path / "pets", "fashion_mnist"):
        with pytest.raises(ValueError, match="cannot be streamed, because it is neither a table nor tar files"):
            StreamSource(source)
    write_tar(tmp_path / "bare/train-0.tar", range(3), classes=False)
    with pytest.raises(ValueError, match="which column is the class"):
        StreamSource(tmp_path / "bare")
    write_tar(tmp_path / "val/set-val-0.tar", range(3))
    with pytest.raises(ValueError, match="expected a split named train, found val"):
        StreamSource(tmp_path / "val")


# ---- every image once


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("readers", [1, 2, 3, 4, 6])  # processes × workers; five files, of which one has one image
@pytest.mark.parametrize("shuffle", [0, 5])
def test_every_image_is_read_once(tmp_path: Path, kind: str, readers: int, shuffle: int) -> None:
    split = stream_of(tmp_path, kind)
    seen = [
        e.image().getpixel((0, 0)) for r in range(readers) for e in Reader(split, r, readers, shuffle=shuffle).once()
    ]
    assert sorted(seen) == [(n, n, n) for n in range(32)]


def pass_of(reader: Reader, turn: int) -> list[int]:
    found = []
    for example, _ in reader.endless(ReaderPosition(turn)):
        if example.turn > turn:
            return found
        found.append(example.image().getpixel((0, 0))[0])
    raise AssertionError("a stream ended")


@pytest.mark.parametrize("kind", KINDS)
def test_a_pass_has_every_image_once_in_an_order_of_its_own(tmp_path: Path, kind: str) -> None:
    split = stream_of(tmp_path, kind)
    orders = {
        (seed, turn): pass_of(Reader(split, 0, 1, seed=seed, shuffle=5), turn) for seed in (1, 2) for turn in (0, 1)
    }
    assert all(sorted(order) == list(range(32)) for order in orders.values())
    assert len({tuple(order) for order in orders.values()} | {tuple(range(32))}) == 5
    assert orders[1, 1] == pass_of(Reader(split, 0, 1, seed=1, shuffle=5), 1)
    readers = [pass_of(Reader(split, r, 3, seed=1, shuffle=5), 2) for r in range(3)]
    assert sorted(n for found in readers for n in found) == list(range(32))


def test_readers_have_equally_much(tmp_path: Path) -> None:
    split = stream_of(tmp_path, "webdataset", (40,) * 5)
    for readers in (2, 3, 4, 5, 7, 16):
        counts = [sum(1 for _ in Reader(split, r, readers, seed=3).once()) for r in range(readers)]
        assert sum(counts) == 200
        assert max(counts) - min(counts) <= 4, counts  # of 12 to 100


def test_more_readers_than_images(tmp_path: Path) -> None:
    split = stream_of(tmp_path, "webdataset", (3,))
    with pytest.raises(ValueError, match=r"9 readers \(processes × workers\) are too many .* Lower data.num_workers"):
        [next(Reader(split, r, 9).endless(ReaderPosition())) for r in range(9)]


# ---- batches to go on from


def drawn(stream: TrainStream, epochs: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for _ in range(epochs) for batch in stream]


@pytest.mark.parametrize(("kind", "workers"), [("parquet", 0), ("webdataset", 0), ("parquet", 2), ("webdataset", 2)])
def test_a_stream_goes_on_with_the_batches_it_would_have_given(tmp_path: Path, kind: str, workers: int) -> None:
    """After every number of batches, in and between epochs of 5, over several passes; augmentation included."""
    split = stream_of(tmp_path, kind)

    def stream(**kwargs: Any) -> TrainStream:
        return TrainStream(maker_of(split, num_workers=workers, augment="imagenet"), 5, shuffle=6, **kwargs)

    whole, states = stream(), []
    batches = []
    for _ in range(4):
        for batch in whole:
            batches.append(batch)
            states.append(whole.state())
    assert len(batches) == 20 and {len(y) for _, y in batches} == {4}
    for done in range(1, 20, 1 if workers == 0 else 4):
        again = stream(state=states[done - 1], start=done % 5)
        rest = drawn(again, -(-(20 - done) // 5))
        assert len(rest) == 20 - done
        for (x, y), (x2, y2) in zip(batches[done:], rest, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)
        assert again.state() == states[-1]


@pytest.mark.parametrize("world", [1, 2, 3])
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_passes_of_all_workers_of_all_processes_are_complete(tmp_path: Path, world: int, workers: int) -> None:
    split = stream_of(tmp_path, "webdataset", (7, 6, 12, 5, 9))
    seen: Counter[int] = Counter()
    for rank in range(world):
        maker = maker_of(split, rank=rank, world=world, num_workers=workers, batch_size=3)
        own = [sum(1 for _ in maker.reader(w, 5).once()) for w in range(maker.workers)]
        stream = TrainStream(maker, maker.workers * max(own), shuffle=5)
        given: list[list[int]] = [[] for _ in own]
        for place, (images, _) in enumerate(stream):
            given[place % maker.workers] += numbers(images)
        for count, found in zip(own, given, strict=True):
            assert len(set(found[:count])) == count, "an image came twice in a pass"
            seen.update(found[:count])
    assert seen == Counter(range(39))


def test_going_on_reads_no_shard_that_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = stream_of(tmp_path, "webdataset", (6,) * 8)
    stream = TrainStream(maker_of(split, batch_size=6), 7, shuffle=6)
    list(stream)
    opened: list[str] = []
    import tarfile

    opens = tarfile.open

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append("tar")
        return opens(*args, **kwargs)

    monkeypatch.setattr(tarfile, "open", counted)
    again = TrainStream(maker_of(split, batch_size=6), 1, shuffle=6, state=stream.state())
    assert len(next(iter(again))[1]) == 6
    assert len(opened) <= 2, "of eight shards, six of which were done"


def test_a_state_of_other_workers(tmp_path: Path) -> None:
    split = stream_of(tmp_path, "webdataset")
    state = TrainStream(maker_of(split, num_workers=2), 3).state()
    with pytest.raises(ValueError, match=r"1 processes with 2 workers each, and this run has 1 with 3.*num_workers 2"):
        TrainStream(maker_of(split, num_workers=3), 3, state=state)


# ---- evaluation


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_evaluation_counts_every_image_once(tmp_path: Path, kind: str, workers: int) -> None:
    split = stream_of(tmp_path, kind)
    seen = [n for images, _ in EvalStream(maker_of(split, num_workers=workers)) for n in numbers(images)]
    assert sorted(seen) == list(range(32))


# ---- what is broken


@pytest.mark.parametrize(
    ("kind", "piece"), [("parquet", r"-of-00002.parquet, row group 1"), ("webdataset", "-0001.tar")]
)
def test_a_bad_image_costs_one_warning(tmp_path: Path, kind: str, piece: str) -> None:
    sizes = (4, 8) if kind == "webdataset" else (8, 4)
    split = stream_of(tmp_path, kind, sizes, bad=[5])
    stream = TrainStream(maker_of(split, max_unreadable=1), 9, shuffle=5)
    with pytest.warns(UserWarning, match=rf"skipped: image .*{piece}, image 1 \(0*5.png\) cannot be read") as caught:
        seen = Counter(n for images, _ in stream for n in numbers(images))
    assert len(caught) == 1 and set(seen) == set(range(12)) - {5} and set(seen.values()) == {3}
    with pytest.raises(UnreadableImage, match=r"image 1 \(0*5.png\)"):
        list(EvalStream(maker_of(split)))
    with warnings.catch_warnings(record=True):
        classes = [int(y) for _, y in EvalStream(maker_of(split, max_unreadable=1, batch_size=1))]
        assert len(classes) == 12 and classes.count(-1) == 1  # to be computed, and not counted
        stream = TrainStream(maker_of(split, max_unreadable=1, batch_size=1), 22, shuffle=5)
        assert Counter(n for images, _ in stream for n in numbers(images)) == dict.fromkeys({*range(12)} - {5}, 2)


def test_nothing_but_find_problems(tmp_path: Path) -> None:
    """In the share of one process of two."""
    split = stream_of(tmp_path, "webdataset", (4, 4), bad=range(4))
    with warnings.catch_warnings(), pytest.raises(UnreadableImage, match="reader 0 cannot read any of its images"):
        warnings.simplefilter("ignore")
        list(TrainStream(maker_of(split, world=2, max_unreadable=9), 3))


def test_a_shard_that_breaks_off(tmp_path: Path) -> None:
    split = stream_of(tmp_path, "webdataset", (4, 4))
    file = tmp_path / "set1k-train-0001.tar"
    file.write_bytes(file.read_bytes()[:3000])
    with pytest.raises(ValueError, match=r"set1k-train-0001.tar cannot be read beyond image \d.*. Download it again"):
        list(Reader(split, 0, 1).once())
