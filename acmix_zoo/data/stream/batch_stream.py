"""Loaders of a stream: `TrainStream` has endless batches and can be resumed, `EvalStream` counts every image once."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from acmix_zoo.data.augment import Augment, image_keys
from acmix_zoo.data.batches import Batch, ImageReader, UnreadableCounter, blank_batch, detach_worker, read_batch
from acmix_zoo.data.images import UnreadableImage
from acmix_zoo.data.samplers import process_rank
from acmix_zoo.data.sources.stream_source import StreamSplit
from acmix_zoo.data.stream.reader import SHUFFLE, Example, Reader, ReaderPosition

# An image of a stream has no number, only a shard and a row. Two of a few unreadable images hardly ever share a hash.
_NUMBERS = 2**20


class NamedBatch(NamedTuple):
    """A batch and the names of its images.

    Attributes:
        batch: images and classes.
        names: names of the images for messages.
    """

    batch: Batch
    names: list[str]


class BatchMaker:
    """Turns the examples of a split into batches.

    Args:
        split: the split to read.
        augment: size, normalisation and augmentation.
        batch_size: number of images per batch.
        num_workers: number of worker processes; 0 to read in the calling process.
        seed: seed of the order and the augmentation.
        max_unreadable: number of unreadable images to skip, each with one warning. One more is an error.
        raw: keep the images as uint8, as in `ImageDataset`.
    """

    def __init__(
        self,
        split: StreamSplit,
        augment: Augment,
        batch_size: int,
        *,
        num_workers: int = 0,
        seed: int = 0,
        max_unreadable: int = 0,
        raw: bool = False,
    ) -> None:
        self.split, self.augment, self.batch_size, self.seed, self.raw = split, augment, batch_size, seed, raw
        self.num_workers, self.workers = num_workers, max(1, num_workers)
        self.rank, self.world = process_rank()
        self.unreadable = UnreadableCounter(split.size, max_unreadable, _NUMBERS)

    def reader(self, worker: int, shuffle: int) -> Reader:
        """Return the reader of one of this process's workers."""
        number = self.rank * self.workers + worker
        return Reader(self.split, number, self.world * self.workers, seed=self.seed, shuffle=shuffle)

    def batch(self, examples: list[Example], reader: Reader) -> NamedBatch:
        """Return a batch of those examples that can be read. It may be empty.

        The augmentation of an image depends on its number in its reader's pass, but not on the process.
        """
        keys = [image_keys(self.seed, e.turn, reader.reader, images=np.array([e.number])) for e in examples]
        readers = [ImageReader(hash((e.shard, e.row)) % _NUMBERS, e.image) for e in examples]
        images, succeeded = read_batch(readers, np.concatenate(keys), self.augment, self.unreadable)
        images = images if self.raw else self.augment.pixels.normalize(images)
        read = [examples[index] for index in succeeded]
        targets = torch.tensor([example.label for example in read], dtype=torch.int64)
        return NamedBatch((images, targets), [example.name for example in read])

    def loader(self, dataset: IterableDataset[Any]) -> DataLoader[Any]:
        """Return a loader of a dataset that yields whole batches."""
        return DataLoader(
            dataset,
            batch_size=None,
            num_workers=self.num_workers,
            worker_init_fn=_start_worker,
            pin_memory=torch.cuda.is_available(),
        )


def _start_worker(worker: int) -> None:
    detach_worker(worker)
    # fsspec reads remote files in a thread, which does not exist in a forked process
    import fsspec.asyn  # type: ignore[import-untyped]

    fsspec.asyn.reset_lock()


def _worker_number() -> int:
    info = get_worker_info()
    return info.id if info else 0


class _TrainItem(NamedTuple):
    """What a worker sends to the training process.

    Attributes:
        batch: images and classes.
        worker: number of the worker.
        position: the worker's position after this batch.
        names: names of the images.
    """

    batch: Batch
    worker: int
    position: ReaderPosition
    names: list[str]


class _TrainDataset(IterableDataset[_TrainItem]):
    """Endless batches of all workers in turn.

    Args:
        maker: makes the batches.
        shuffle: number of images per chunk, see `Reader`.
        positions: the position of each worker.
        next_worker: the worker that makes the next batch.
    """

    def __init__(self, maker: BatchMaker, shuffle: int, positions: list[ReaderPosition], next_worker: int) -> None:
        self.maker, self.shuffle, self.positions, self.next_worker = maker, shuffle, positions, next_worker

    def __iter__(self) -> Iterator[_TrainItem]:
        # The loader asks its processes in turn, starting with the first, which therefore acts as `next_worker`.
        worker = (_worker_number() + self.next_worker) % self.maker.workers
        reader = self.maker.reader(worker, self.shuffle)
        images, lost = reader.endless(self.positions[worker]), 0
        while True:
            taken = list(islice(images, self.maker.batch_size))
            batch, names = self.maker.batch([example for example, _ in taken], reader)
            if names:
                lost = 0
                yield _TrainItem(batch, worker, taken[-1][1], names)
                continue
            lost += len(taken)
            if lost > 2 * self.maker.unreadable.limit:  # at most `limit` at the end of a pass and at the start of one
                raise UnreadableImage(
                    f"{self.maker.split.name}: reader {reader.reader} cannot read any of its images. Check the shards"
                )


class TrainStream:
    """Training batches as a loader for Lightning. The next epoch starts where the last one ended.

    Workers prefetch beyond the end of an epoch. The position of a worker is the one that came with its last consumed
    batch, so nothing is lost if prefetched batches are discarded because a run stops.

    Args:
        maker: makes the batches.
        steps: number of batches per epoch.
        shuffle: number of images per chunk, see `Reader`.
        state: result of `state` in a run with the same number of processes and workers, to resume from.
        start: number of batches of the first epoch that are already done.

    Attributes:
        names: names of the images of the last batch.

    Raises:
        ValueError: the state comes from a run with a different number of processes or workers.
    """

    def __init__(
        self,
        maker: BatchMaker,
        steps: int,
        *,
        shuffle: int = SHUFFLE,
        state: dict[str, Any] | None = None,
        start: int = 0,
    ) -> None:
        self.maker, self.steps, self.start = maker, steps, start
        self.names: list[str] = []
        positions, next_worker = [ReaderPosition()] * maker.workers, 0
        if state is not None:
            positions, next_worker = _own_positions(state, maker), state["given"]
        self.dataset = _TrainDataset(maker, shuffle, positions, next_worker)
        self._items: Iterator[_TrainItem] | None = None

    def __len__(self) -> int:
        # the length of the whole epoch even after a resume, because the trainer counts the batches done before
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        count, self.start = self.steps - self.start, 0
        if self._items is None:
            self._items = iter(self.maker.loader(self.dataset))
        for batch, worker, position, names in islice(self._items, count):
            self.names = names
            self.dataset.positions[worker] = position
            self.dataset.next_worker = (worker + 1) % self.maker.workers
            yield batch

    def close(self) -> None:
        """Stop the workers."""
        self._items = None

    def state(self) -> dict[str, Any]:
        """Return the positions of all workers of all processes as numbers. Every process must call this."""
        own = [list(position) for position in self.dataset.positions]
        by_process = [own] * self.maker.world
        if self.maker.world > 1:
            distributed.all_gather_object(by_process, own)
        positions = [position for process in by_process for position in process]
        return {"workers": self.maker.workers, "given": self.dataset.next_worker, "places": positions}


def _own_positions(state: dict[str, Any], maker: BatchMaker) -> list[ReaderPosition]:
    """Return the positions of this process's workers in a state."""
    workers = state["workers"]
    processes = len(state["places"]) // workers
    if (processes, workers) != (maker.world, maker.workers):
        raise ValueError(
            f"this run has {maker.world} processes with {maker.workers} workers each. Expected {processes} with "
            f"{workers}, as in the checkpoint, because each worker resumes in its own part of the stream. Start "
            f"{processes} processes with --data.num_workers {workers}, or start a new run from the weights with "
            "--model.pretrained"
        )
    own = state["places"][maker.rank * workers : (maker.rank + 1) * workers]
    return [ReaderPosition(*position) for position in own]


class _EvalDataset(IterableDataset[Batch]):
    """Every image of a worker once."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __iter__(self) -> Iterator[Batch]:
        reader = self.maker.reader(_worker_number(), shuffle=0)
        images = reader.once()
        while examples := list(islice(images, self.maker.batch_size)):
            batch, names = self.maker.batch(examples, reader)
            yield batch if names else blank_batch(self.maker.augment, self.maker.raw)


class EvalStream:
    """Evaluation batches as a loader: every image once, over all processes and workers.

    A process that has fewer batches than others yields blank ones at the end, because a model that is sharded over
    processes needs all of them in every step.
    """

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.maker.loader(_EvalDataset(self.maker)))
        while True:
            batch = next(batches, None)
            if not _is_true_in_any_process(batch is not None, self.maker.world):
                return
            yield blank_batch(self.maker.augment, self.maker.raw) if batch is None else batch


def _is_true_in_any_process(value: bool, world: int) -> bool:
    if world == 1:
        return value
    is_nccl = distributed.get_backend() == "nccl"
    flag: Tensor = torch.tensor(int(value), device="cuda" if is_nccl else "cpu")
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
