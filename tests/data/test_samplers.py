"""Samplers: evaluation counts every image once, and training deals a shuffle to the processes."""

import pytest
from torch.utils.data import DistributedSampler

from acmix_zoo.data.samplers import EvalSampler, TrainSampler


class Dataset:
    """What `TrainSampler` needs of a dataset."""

    epoch = 0

    def __init__(self, size: int) -> None:
        self.size = size

    def __len__(self) -> int:
        return self.size


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("size", "world"), [(21, 2), (2001, 2), (5, 3), (1, 4), (0, 2), (7, 1)])
def test_evaluation_counts_every_image_once(size: int, world: int, batch: int) -> None:
    shards = [EvalSampler(size, batch, rank, world) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard if index >= 0) == list(range(size))
    assert all(len(shard) == len(list(shard)) for shard in shards)
    assert all(isinstance(shard, DistributedSampler) for shard in shards), "Lightning would replace them"
    indices = [list(shard) for shard in shards]
    batches = [[own[i : i + batch] for i in range(0, len(own), batch)] for own in indices]
    assert len({len(own) for own in batches}) == 1, "a process would wait for another's last batch"
    alone = [list(range(i, min(i + batch, size))) for i in range(0, size, batch)]
    assert sorted(b for own in batches for b in own if min(b) >= 0) == alone, "batches are those of one process"


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_has_the_same_images_on_any_number_of_processes(world: int) -> None:
    dataset = Dataset(50)
    alone = list(TrainSampler(dataset, seed=1, step=12, rank=0, world=1))
    assert len(alone) == 48
    shards = [list(TrainSampler(dataset, seed=1, step=12 // world, rank=r, world=world)) for r in range(world)]
    for start in range(0, 48, 12):
        step = [i for shard in shards for i in shard[start // world : (start + 12) // world]]
        assert sorted(step) == sorted(alone[start : start + 12])


def test_repeated_augmentation_keeps_the_length_of_an_epoch() -> None:
    """Each sampled image comes three times in a row."""
    dataset = Dataset(50)
    order = list(TrainSampler(dataset, seed=1, repeats=3, rank=0, world=1))
    assert len(order) == 50 and len(set(order)) == 50
    assert [i % 50 for i in order[0:48:3]] == [i % 50 for i in order[1:48:3]] == [i % 50 for i in order[2:48:3]]
    assert len({i % 50 for i in order}) == 17
    shards = [list(TrainSampler(dataset, seed=1, repeats=3, rank=rank, world=2)) for rank in range(2)]
    assert [i for pair in zip(*shards, strict=True) for i in pair] == order


def test_training_order_depends_on_epoch_and_seed_and_can_be_resumed() -> None:
    dataset = Dataset(11)
    orders = []
    for epoch in range(3):
        shards = [TrainSampler(dataset, seed=1, epoch=epoch, rank=rank, world=2) for rank in range(2)]
        orders.append([list(shard) for shard in shards])
        assert [len(shard) for shard in shards] == [5, 5] == [len(order) for order in orders[-1]]
        seen = orders[-1][0] + orders[-1][1]
        assert len(set(seen)) == 10 and set(seen) < set(range(11))
    assert orders[0] != orders[1] != orders[2]
    sampler = TrainSampler(dataset, seed=1, epoch=1, start=3, rank=0, world=2)
    assert list(sampler) == orders[1][0][3:] and len(sampler) == 5 and dataset.epoch == 1
    sampler.set_epoch(1)
    assert list(sampler) == orders[1][0][3:]
    sampler.set_epoch(2)
    assert list(sampler) == orders[2][0] and dataset.epoch == 2
    assert list(TrainSampler(dataset, seed=2, rank=0, world=2)) != orders[0][0]
