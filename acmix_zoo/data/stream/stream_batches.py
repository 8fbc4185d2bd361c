"""Batches from a stream: endless for training, with places to go on from; finite and complete for evaluation."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import Tensor, distributed
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from acmix_zoo.data.augment import Augment, image_keys
from acmix_zoo.data.batches import BadImages, Batch, apart, blank, read_batch
from acmix_zoo.data.images import BadImage
from acmix_zoo.data.samplers import place_of
from acmix_zoo.data.stream.reader import SHUFFLE, Example, Place, Reader, Streamed


class BatchMaker:
    """What batches of a split are made with.

    Args:
        split, augment: what to read, and what to make of it.
        batch_size: images a batch.
        workers: processes that read; 0 reads in the calling process.
        seed: of order and augmentation.
        max_bad: unreadable images that are left out, each with one warning; one more is an error.
        raw: keep the images as uint8, as in `ImageDataset`.
    """

    def __init__(
        self,
        split: Streamed,
        augment: Augment,
        batch_size: int,
        *,
        workers: int = 0,
        seed: int = 0,
        max_bad: int = 0,
        raw: bool = False,
    ) -> None:
        self.split, self.augment, self.batch_size, self.seed, self.raw = split, augment, batch_size, seed, raw
        self.processes, self.workers = workers, max(1, workers)
        self.rank, self.world = place_of()
        # where the size is not known, two bad images may count as one
        self.bad = BadImages(split.size or 10_000_000, max_bad)

    def reader(self, worker: int, shuffle: int) -> Reader:
        """The reader that this process's worker number `worker` is."""
        number = self.rank * self.workers + worker
        return Reader(self.split, number, self.world * self.workers, seed=self.seed, shuffle=shuffle)

    def batch(self, examples: list[Example], reader: Reader) -> tuple[Batch, list[str]]:
        """Images as in `ImageDataset` and classes (B,) int64, with the images' names; B is 0 if none can be read. An
        image's augmentation depends on its number in its reader's pass, regardless of the process."""
        keys = [image_keys(self.seed, e.turn, reader.reader, images=np.array([e.number])) for e in examples]
        size = len(self.bad.seen)
        readers = [((example.shard * 1_000_003 + example.row) % size, example.image) for example in examples]
        images, kept = read_batch(readers, np.concatenate(keys), self.augment, self.bad)
        images = images if self.raw else self.augment.pixels.normalize(images)
        read = [examples[place] for place in kept]
        return (images, torch.tensor([e.label for e in read], dtype=torch.int64)), [e.name for e in read]

    def loader(self, dataset: IterableDataset[Any]) -> DataLoader[Any]:
        """Return a loader that sends its workers their positions when it is iterated."""
        return DataLoader(
            dataset,
            batch_size=None,  # batches come ready
            num_workers=self.processes,
            worker_init_fn=_begin,
            pin_memory=torch.cuda.is_available(),
        )


def _begin(worker: int) -> None:
    apart(worker)
    # remote files are read by a thread that a forked process does not have
    import fsspec.asyn  # type: ignore[import-untyped]

    fsspec.asyn.reset_lock()


def _worker() -> int:
    info = get_worker_info()
    return info.id if info else 0


class _Endless(IterableDataset[tuple[Batch, int, Place, list[str]]]):
    """Each batch with the worker it is of, that worker's place after it, and the names of its images."""

    def __init__(self, maker: BatchMaker, shuffle: int, places: list[Place], given: int) -> None:
        self.maker, self.shuffle, self.places, self.given = maker, shuffle, places, given

    def __iter__(self) -> Iterator[tuple[Batch, int, Place, list[str]]]:
        # the loader asks its processes in turn, beginning with the first, and the next batch is worker number given's
        worker = (_worker() + self.given) % self.maker.workers
        reader = self.maker.reader(worker, self.shuffle)
        images, lost = reader.endless(self.places[worker]), 0
        while True:
            taken = list(islice(images, self.maker.batch_size))
            batch, names = self.maker.batch([example for example, _ in taken], reader)
            if names:
                lost = 0
                yield batch, worker, taken[-1][1], names
                continue
            lost += len(taken)
            if lost > 2 * self.maker.bad.limit:  # the end of a pass and the beginning of the next have no more of them
                raise BadImage("a reader of the stream: none of the images of its share can be read")


class TrainStream:
    """Training batches as a loader for Lightning, `steps` an epoch; the next epoch goes on where the last one ended.

    Workers prefetch beyond the end of an epoch. A worker's position is the one that came with its last consumed
    batch, so nothing is lost if prefetched batches are discarded because a run stops.

    Args:
        maker: of the batches. steps: batches an epoch. shuffle: images a chunk, see `Reader`.
        state: what `gathered()` gave in a run of as many processes and workers, to go on from.
        start: batches of the first epoch that are done.

    Raises:
        ValueError: the state is of a run with other processes or workers.
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
        self.names: list[str] = []  # of the images of the last batch
        places, given = [Place()] * maker.workers, 0
        if state is not None:
            was = (len(state["places"]) // state["workers"], state["workers"])
            if was != (maker.world, maker.workers):
                raise ValueError(
                    f"the checkpoint's stream was read by {was[0]} processes with {was[1]} workers each, this run has "
                    f"{maker.world} with {maker.workers}, and each goes on with a share of its own. Start {was[0]} "
                    f"processes with --data.num_workers {was[1]}, or begin a new run from its weights with "
                    "--model.pretrained"
                )
            own = state["places"][maker.rank * maker.workers : (maker.rank + 1) * maker.workers]
            places, given = [Place(*place) for place in own], state["given"]
        self.stream = _Endless(maker, shuffle, places, given)
        self._batches: Iterator[tuple[Batch, int, Place, list[str]]] | None = None

    def __len__(self) -> int:
        # the whole epoch's, also when it is continued: the trainer counts the batches done before
        return self.steps

    def __iter__(self) -> Iterator[Batch]:
        count, self.start = self.steps - self.start, 0
        if self._batches is None:
            self._batches = iter(self.maker.loader(self.stream))
        for batch, worker, place, names in islice(self._batches, count):
            self.names = names
            self.stream.places[worker] = place
            self.stream.given = (worker + 1) % self.maker.workers
            yield batch

    def close(self) -> None:
        """Stop the workers."""
        self._batches = None

    def gathered(self) -> dict[str, Any]:
        """Where all workers of all processes stand, in plain numbers; every process has to ask for it."""
        own = [list(place) for place in self.stream.places]
        places = [own] * self.maker.world
        if self.maker.world > 1:
            distributed.all_gather_object(places, own)
        flat = [place for process in places for place in process]
        return {"workers": self.maker.workers, "given": self.stream.given, "places": flat}


class _Finite(IterableDataset[Batch]):
    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __iter__(self) -> Iterator[Batch]:
        reader = self.maker.reader(_worker(), shuffle=0)
        images = reader.once()
        while examples := list(islice(images, self.maker.batch_size)):
            batch, names = self.maker.batch(examples, reader)
            yield batch if names else blank(self.maker.augment, self.maker.raw)


class EvalStream:
    """Every image once, over all processes and workers. A process that has fewer batches than others goes on with blank
    ones: a network that is spread over processes needs all of them in every step."""

    def __init__(self, maker: BatchMaker) -> None:
        self.maker = maker

    def __iter__(self) -> Iterator[Batch]:
        batches = iter(self.maker.loader(_Finite(self.maker)))
        while True:
            batch = next(batches, None)
            if not _any_process(batch is not None, self.maker.world):
                return
            yield blank(self.maker.augment, self.maker.raw) if batch is None else batch


def _any_process(own: bool, world: int) -> bool:
    if world == 1:
        return own
    cuda = distributed.get_backend() == "nccl"
    flag: Tensor = torch.tensor(int(own), device="cuda" if cuda else "cpu")
    distributed.all_reduce(flag, distributed.ReduceOp.MAX)
    return bool(flag)
