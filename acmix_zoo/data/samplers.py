"""Which image comes when: a shuffle that can be resumed, and an evaluation that counts every image once.

Both derive from `DistributedSampler`, which is what tells Lightning to leave them in place.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import distributed
from torch.utils.data import DistributedSampler


def _place(rank: int | None, world: int | None) -> tuple[int, int]:
    if rank is not None and world is not None:
        return rank, world
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class ShardSampler(DistributedSampler[int]):
    """Process `rank` of `world` takes images rank, rank + world, …: none padded, none left out, in order.

    Torch's own sampler repeats images until the processes have equally many, which distorts a score.
    """

    def __init__(self, size: int, rank: int | None = None, world: int | None = None) -> None:
        self.size = size
        self.rank, self.num_replicas = _place(rank, world)

    def __len__(self) -> int:
        return len(range(self.rank, self.size, self.num_replicas))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.size, self.num_replicas))

    def set_epoch(self, epoch: int) -> None:
        """Every epoch is the same."""


class EpochSampler(DistributedSampler[int]):
    """A shuffle given by (seed, epoch), dealt to the processes in equal numbers; the tail that does not divide rests.

    Args:
        dataset: its length is used, and its `epoch` attribute is kept equal to the sampler's, for its augmentation.
        seed: of the shuffle.
        epoch, start: continue in this epoch, leaving out the first `start` images of each process.
    """

    def __init__(
        self, dataset: Any, seed: int, epoch: int = 0, start: int = 0, rank: int | None = None, world: int | None = None
    ) -> None:
        self.data, self.seed = dataset, seed
        self.rank, self.num_replicas = _place(rank, world)
        self.start = start
        self.epoch = dataset.epoch = epoch

    def __len__(self) -> int:
        # the whole epoch's, also when it is continued: the trainer counts the batches done before
        return len(self.data) // self.num_replicas

    def __iter__(self) -> Iterator[int]:
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.data), generator=generator)[: len(self) * self.num_replicas]
        return iter(order[self.rank :: self.num_replicas][self.start :].tolist())

    def set_epoch(self, epoch: int) -> None:
        """Called by Lightning before each epoch."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = self.data.epoch = epoch
