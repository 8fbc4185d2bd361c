"""`TrainStream` can be resumed anywhere, and `EvalStream` counts every image once."""

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch
from support.streams import SHARD_KINDS, make_stream
from torch import Tensor

from acmix_zoo.data import UnreadableImage
from acmix_zoo.data.augment import Augment, Pixels
from acmix_zoo.data.sources.stream_source import StreamSplit
from acmix_zoo.data.stream.batch_stream import BatchMaker, EvalStream, TrainStream

PIXELS = Pixels(8, (0.0, 0.0, 0.0), (1.0, 1.0, 1.0), "bicubic", 1.0)


def image_numbers(images: Tensor) -> list[int]:
    """Return the numbers of images (B, 3, S, S)."""
    return (images[:, 0, 0, 0] * 255).round().int().tolist()


def make_maker(
    split: StreamSplit, *, rank: int = 0, world: int = 1, augment: str = "none", **kwargs: Any
) -> BatchMaker:
    """Return a maker that acts as process `rank` of `world`."""
    maker = BatchMaker(split, Augment(PIXELS, augment), kwargs.pop("batch_size", 4), **{"seed": 1, **kwargs})
    maker.rank, maker.world = rank, world
    return maker


# ---- training


def draw_epochs(stream: TrainStream, epochs: int) -> list[tuple[Tensor, Tensor]]:
    return [batch for _ in range(epochs) for batch in stream]


@pytest.mark.parametrize(("kind", "workers"), [("parquet", 0), ("webdataset", 0), ("parquet", 2), ("webdataset", 2)])
def test_a_resumed_stream_continues_with_the_same_batches(tmp_path: Path, kind: str, workers: int) -> None:
    """Resume after every number of batches, within and between epochs of 5, over several passes."""
    split = make_stream(tmp_path, kind)

    def stream(**kwargs: Any) -> TrainStream:
        return TrainStream(make_maker(split, num_workers=workers, augment="imagenet"), 5, shuffle=6, **kwargs)

    uninterrupted, states = stream(), []
    batches = []
    for _ in range(4):
        for batch in uninterrupted:
            batches.append(batch)
            states.append(uninterrupted.state())
    assert len(batches) == 20 and {len(y) for _, y in batches} == {4}
    for done in range(1, 20, 1 if workers == 0 else 4):
        again = stream(state=states[done - 1], start=done % 5)
        rest = draw_epochs(again, -(-(20 - done) // 5))
        assert len(rest) == 20 - done
        for (x, y), (x2, y2) in zip(batches[done:], rest, strict=True):
            assert torch.equal(x, x2) and torch.equal(y, y2)
        assert again.state() == states[-1]


@pytest.mark.parametrize(
    ("world", "workers"),
    [
        (1, 0),
        (2, 2),
        (3, 0),
        *(pytest.param(*p, marks=pytest.mark.slow) for p in ((1, 1), (1, 2), (2, 0), (2, 1), (3, 1), (3, 2))),
    ],
)
def test_passes_of_all_workers_of_all_processes_are_complete(tmp_path: Path, world: int, workers: int) -> None:
    split = make_stream(tmp_path, "webdataset", (7, 6, 12, 5, 9))
    seen: Counter[int] = Counter()
    for rank in range(world):
        maker = make_maker(split, rank=rank, world=world, num_workers=workers, batch_size=3)
        own = [sum(1 for _ in maker.reader(w, 5).once()) for w in range(maker.workers)]
        stream = TrainStream(maker, maker.workers * max(own), shuffle=5)
        given: list[list[int]] = [[] for _ in own]
        for place, (images, _) in enumerate(stream):
            given[place % maker.workers] += image_numbers(images)
        for count, found in zip(own, given, strict=True):
            assert len(set(found[:count])) == count, "an image came twice in a pass"
            seen.update(found[:count])
    assert seen == Counter(range(39))


def test_resuming_does_not_read_finished_shards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    split = make_stream(tmp_path, "webdataset", (6,) * 8)
    stream = TrainStream(make_maker(split, batch_size=6), 7, shuffle=6)
    list(stream)
    opened: list[str] = []
    import tarfile

    open_tar = tarfile.open

    def counted(*args: Any, **kwargs: Any) -> Any:
        opened.append("tar")
        return open_tar(*args, **kwargs)

    monkeypatch.setattr(tarfile, "open", counted)
    again = TrainStream(make_maker(split, batch_size=6), 1, shuffle=6, state=stream.state())
    assert len(next(iter(again))[1]) == 6
    assert len(opened) <= 2, "six of the eight shards are finished"


def test_a_state_of_other_workers_is_rejected(tmp_path: Path) -> None:
    split = make_stream(tmp_path, "webdataset")
    state = TrainStream(make_maker(split, num_workers=2), 3).state()
    with pytest.raises(ValueError, match=r"1 processes with 3 workers each. Expected 1 with 2.*num_workers 2"):
        TrainStream(make_maker(split, num_workers=3), 3, state=state)


# ---- evaluation


@pytest.mark.parametrize("kind", SHARD_KINDS)
@pytest.mark.parametrize("workers", [0, 1, 2])
def test_evaluation_counts_every_image_once(tmp_path: Path, kind: str, workers: int) -> None:
    split = make_stream(tmp_path, kind)
    seen = [n for images, _ in EvalStream(make_maker(split, num_workers=workers)) for n in image_numbers(images)]
    assert sorted(seen) == list(range(32))


# ---- unreadable images


@pytest.mark.parametrize(
    ("kind", "piece"), [("parquet", r"-of-00002.parquet, row group 1"), ("webdataset", "-0001.tar")]
)
def test_an_unreadable_image_is_skipped_with_one_warning(tmp_path: Path, kind: str, piece: str) -> None:
    sizes = (4, 8) if kind == "webdataset" else (8, 4)
    split = make_stream(tmp_path, kind, sizes, bad=[5])
    stream = TrainStream(make_maker(split, max_unreadable=1), 9, shuffle=5)
    with pytest.warns(UserWarning, match=rf"skipped: image .*{piece}, image 1 \(0*5.png\) cannot be read") as caught:
        seen = Counter(n for images, _ in stream for n in image_numbers(images))
    assert len(caught) == 1 and set(seen) == set(range(12)) - {5} and set(seen.values()) == {3}
    with pytest.raises(UnreadableImage, match=r"image 1 \(0*5.png\)"):
        list(EvalStream(make_maker(split)))
    with warnings.catch_warnings(record=True):
        classes = [int(y) for _, y in EvalStream(make_maker(split, max_unreadable=1, batch_size=1))]
        assert len(classes) == 12 and classes.count(-1) == 1  # computed, but not counted
        stream = TrainStream(make_maker(split, max_unreadable=1, batch_size=1), 22, shuffle=5)
        assert Counter(n for images, _ in stream for n in image_numbers(images)) == dict.fromkeys({*range(12)} - {5}, 2)


@pytest.mark.parametrize("first", [0, 7])
def test_two_unreadable_images_of_different_shards_count_as_two(tmp_path: Path, first: int) -> None:
    split = make_stream(tmp_path, "webdataset", (8, 4), bad=[first, 8])
    with warnings.catch_warnings(), pytest.raises(UnreadableImage, match="2 images are unreadable, and at most"):
        warnings.simplefilter("ignore")
        list(EvalStream(make_maker(split, max_unreadable=1)))


def test_a_reader_without_readable_images_is_reported(tmp_path: Path) -> None:
    split = make_stream(tmp_path, "webdataset", (4, 4), bad=range(4))
    with warnings.catch_warnings(), pytest.raises(UnreadableImage, match="reader 0 cannot read any of its images"):
        warnings.simplefilter("ignore")
        list(TrainStream(make_maker(split, world=2, max_unreadable=9), 3))
