"""Which image comes when: a shuffle that can be resumed, and an evaluation that counts every image once.

Both derive from `DistributedSampler`, which is what tells Lightning to leave them in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler


def place_of(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """This process's number, and how many there are; for another process both are given."""
    if rank is not None and world is not None:
        return rank, world
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class ShardSampler(DistributedSampler[int]):
    """Process `rank` of `world` takes batches rank, rank + world, … of the images in order: each counted once.

    Torch's own sampler repeats images until the processes have equally many, which distorts a score. Here batches are
    what one process would make of the images, so every number computed from one is the same on any number of processes.
    A process that would have a batch less than others gets the first one again, as -1 - i in place of image i, to be
    computed and not counted: a network that is spread over processes needs all of them in every step.
    """

    def __init__(self, size: int, batch: int, rank: int | None = None, world: int | None = None) -> None:
        self.size, self.batch = size, batch
        self.rank, self.num_replicas = place_of(rank, world)

    def _starts(self) -> range:
        return range(self.rank * self.batch, self.size, self.num_replicas * self.batch)

    def __iter__(self) -> Iterator[int]:
        for start in self._starts():
            yield from range(start, min(start + self.batch, self.size))
        if len(self._starts()) < len(range(0, self.size, self.num_replicas * self.batch)):
            yield from (-1 - i for i in range(min(self.batch, self.size)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


class EpochSampler(DistributedSampler[int]):
    """A shuffle given by (seed, epoch), dealt to the processes in equal numbers; the tail that does not divide rests.

    The images of a step are the same on any number of processes that have the same global batch.

    Args:
        dataset: its length N is used, and its `epoch` attribute is kept equal to the sampler's, for its augmentation.
        seed: of the shuffle.
        step: images that a process needs for an optimiser step; where there are as many, an epoch has whole steps.
        repeats: each image that comes up does so this many times in a row, as i, N + i, 2N + i, … (repeated
            augmentation: Hoffer et al. 2020, DeiT); an epoch has as many draws, and so fewer images.
        epoch, start: continue in this epoch, leaving out the first `start` images of each process.
    """

    def __init__(
        self,
        dataset: Any,
        seed: int,
        *,
        step: int = 1,
        repeats: int = 1,
        epoch: int = 0,
        start: int = 0,
        rank: int | None = None,
        world: int | None = None,
    ) -> None:
        self.data, self.seed, self.repeats = dataset, seed, repeats
        self.rank, self.num_replicas = place_of(rank, world)
        share = len(dataset) // self.num_replicas
        self.length = share // step * step or share
        self.start = start
        self.epoch = dataset.epoch = epoch

    def __len__(self) -> int:
        # the whole epoch's, also when it is continued: the trainer counts the batches done before
        return self.length

    def order(self) -> Tensor:
        """(length,) integers: this process's images in this epoch."""
        size = len(self.data)
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        draws = torch.randperm(size, generator=generator)
        if self.repeats > 1:
            copies = torch.arange(size) % self.repeats
            draws = draws[: -(-size // self.repeats)].repeat_interleave(self.repeats)[:size] + size * copies
        return draws[: self.length * self.num_replicas][self.rank :: self.num_replicas]

    def __iter__(self) -> Iterator[int]:
        return iter(self.order()[self.start :].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = self.data.epoch = epoch
