"""Samplers for training (shuffled and resumable) and for evaluation (each image exactly once).

Both derive from `DistributedSampler`, because Lightning replaces all other samplers if there are several processes.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, distributed
from torch.utils.data import DistributedSampler


def process_rank(rank: int | None = None, world: int | None = None) -> tuple[int, int]:
    """Return the rank of a process and the number of processes.

    Args:
        rank, world: the result, if both are given. By default, they are those of the calling process.
    """
    if rank is not None and world is not None:
        return rank, world
    if distributed.is_available() and distributed.is_initialized():
        return distributed.get_rank(), distributed.get_world_size()
    return 0, 1


class EvalSampler(DistributedSampler[int]):
    """Sampler that counts every image once. Process `rank` of `world` gets batches rank, rank + world, … in order.

    PyTorch's own sampler repeats images until all processes have equally many, which distorts a score. Here the batches
    are those of a single process, so that every number computed from a batch is the same on any number of processes.

    A model that is sharded over processes needs all of them in every step. A process with one batch fewer than others
    therefore receives its first images again, with the index -1 - i instead of i. `ImageDataset` gives them the class
    -1, so that they are computed but not counted.

    Args:
        size: number of images.
        batch_size: number of images per batch.
        rank, world: see `process_rank`.
    """

    def __init__(self, size: int, batch_size: int, rank: int | None = None, world: int | None = None) -> None:
        self.size, self.batch_size = size, batch_size
        self.rank, self.num_replicas = process_rank(rank, world)

    def _batch_starts(self) -> range:
        return range(self.rank * self.batch_size, self.size, self.num_replicas * self.batch_size)

    def __iter__(self) -> Iterator[int]:
        for start in self._batch_starts():
            yield from range(start, min(start + self.batch_size, self.size))
        most_batches = len(range(0, self.size, self.num_replicas * self.batch_size))
        if len(self._batch_starts()) < most_batches:
            yield from (-1 - i for i in range(min(self.batch_size, self.size)))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def set_epoch(self, epoch: int) -> None:
        """Do nothing, because every epoch is the same."""


class TrainSampler(DistributedSampler[int]):
    """Shuffle the images by (seed, epoch), and give each process the same number of them. A remainder is left out.

    The images of an optimiser step are the same on any number of processes with the same global batch size.

    Args:
        dataset: dataset of N images. Its `epoch` attribute, which its augmentation depends on, follows the sampler's.
        seed: seed of the shuffle.
        step: number of images per process and optimiser step. An epoch has whole steps, unless it is shorter than one.
        repeats: number of differently augmented copies of each sampled image (repeated augmentation: Hoffer et al.
            2020, DeiT). They follow each other as i, N + i, 2N + i, … The length of an epoch stays the same.
        epoch, start: resume in this epoch, after the first `start` images of each process.
        rank, world: see `process_rank`.
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
        self.rank, self.num_replicas = process_rank(rank, world)
        share = len(dataset) // self.num_replicas
        self.length = share // step * step or share
        self.start = start
        self.epoch = dataset.epoch = epoch

    def __len__(self) -> int:
        # the length of the whole epoch even after a resume, because the trainer counts the batches done before
        return self.length

    def order(self) -> Tensor:
        """Return (length,) integers: the images of this process in this epoch."""
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
        """Set the epoch. Lightning calls this before each one."""
        if epoch != self.epoch:
            self.start = 0
        self.epoch = self.data.epoch = epoch
