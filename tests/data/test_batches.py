"""Batches: the fast path equals the slow one, random numbers are given by (seed, epoch, index), samplers are exact."""

import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader, DistributedSampler

from acmix_zoo.data import UnreadableImage
from acmix_zoo.data.augment import Augment, Pixels, image_keys, seed_globals, shift_and_flip, uniforms
from acmix_zoo.data.batches import detach_worker, keep_batch
from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.samplers import EvalSampler, TrainSampler
from acmix_zoo.data.sources.image_sets import ArrayImages, FileImages
from acmix_zoo.data.splits import Split

KEYS = image_keys(3, images=np.arange(64))
PIXELS = Pixels(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 1.0)


def images(count: int = 12, size: int = 16, channels: int = 1) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(count) % 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_pictures_in_memory_equal_timm_transform(channels: int) -> None:
    source = images(channels=channels)
    dataset = ImageDataset(Split(source, np.array([5, 2, 7])), Augment(PIXELS))
    assert dataset.array is not None
    x, y = dataset.__getitems__([0, 2])
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32 and y.tolist() == [2, 1] and y.dtype == torch.int64
    transform = PIXELS.eval_transform()
    expected = torch.stack([transform(source.image(5)), transform(source.image(7))])
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dataset[2][0], expected[1], atol=1e-6, rtol=1e-6)


def test_pictures_of_another_size_equal_timm_transform() -> None:
    pixels = Pixels(32, PIXELS.mean, PIXELS.std, "bilinear", 0.875)
    source = images(size=20)
    x, _ = ImageDataset(Split(source, np.arange(12)), Augment(pixels)).__getitems__([3])
    torch.testing.assert_close(x[0], pixels.eval_transform()(source.image(3)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 7)])
def test_any_shape_of_picture_becomes_square(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 255).save(tmp_path / "odd.png")
    source = FileImages([str(tmp_path / "odd.png")], np.zeros(1, np.int64))
    for augment in ("none", "light", "imagenet"):
        x, _ = ImageDataset(Split(source, np.arange(1)), Augment(PIXELS, augment)).__getitems__([0])
        assert x.shape == (1, 3, 16, 16) and x.isfinite().all()


def test_shift_and_flip_gives_crops_of_the_padded_picture() -> None:
    batch = images(64).array
    out = shift_and_flip(batch, 2, 0.5, KEYS)
    assert out.shape == batch.shape and out.dtype == np.uint8 and out.flags.c_contiguous
    kinds = set()
    for before, after in zip(batch, out, strict=True):
        padded = np.pad(before, ((0, 0), (2, 2), (2, 2)))
        crops = {(t, m, flip): padded[:, t : t + 16, m : m + 16][:, :, :: -1 if flip else 1]
                 for t in range(5) for m in range(5) for flip in (False, True)}  # fmt: skip
        kinds.add(next(key for key, crop in crops.items() if np.array_equal(crop, after)))
    assert {t for t, _, _ in kinds} == {m for _, m, _ in kinds} == set(range(5)) and {f for _, _, f in kinds} == {0, 1}
    assert np.array_equal(shift_and_flip(batch, 0, 0.0, KEYS), batch)
    assert np.array_equal(shift_and_flip(batch, 0, 1.0, KEYS), batch[..., ::-1])


@pytest.mark.parametrize("augment", ["light", "imagenet", "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2"])
def test_augmentation_is_given_by_seed_epoch_and_index(augment: str) -> None:
    dataset = ImageDataset(Split(images(), np.arange(12)), Augment(PIXELS, augment, random_erasing=0.5), seed=7)
    torch.manual_seed(5)
    first, states = dataset.__getitems__([4, 5, 6])[0], (torch.rand(1), random.random(), np.random.rand())
    torch.manual_seed(99), random.seed(99), np.random.seed(99)
    assert torch.equal(dataset.__getitems__([4, 5, 6])[0], first), "depends on the global generators"
    assert torch.equal(dataset.__getitems__([6, 3, 4])[0][[0, 2]], first[[2, 0]]), "depends on the batch"
    assert not torch.equal(dataset.__getitems__([4 + 12, 5 + 12])[0], first[:2]), "a repetition has the same numbers"
    dataset.epoch = 1
    assert not torch.equal(dataset.__getitems__([4, 5, 6])[0], first), "every epoch has the same numbers"
    torch.manual_seed(5)
    assert torch.equal(torch.rand(1), states[0]), "the model's random numbers are disturbed"


def test_auto_augment_runs_at_its_strongest() -> None:
    # posterize to 0 bits: Pillow 13 refuses
    dataset = ImageDataset(Split(images(), np.arange(12)), Augment(PIXELS, "rand-m10-n8-inc1"))
    for epoch in range(15):
        dataset.epoch = epoch
        assert dataset.__getitems__(list(range(12)))[0].isfinite().all()


def test_random_erasing_erases() -> None:
    dataset = ImageDataset(Split(images(), np.arange(12)), Augment(PIXELS, random_erasing=1.0))
    plain = ImageDataset(Split(images(), np.arange(12)), Augment(PIXELS))
    erased, x = (d.__getitems__(list(range(12)))[0] for d in (dataset, plain))
    assert all((a != b).any() and (a == b).any() for a, b in zip(erased, x, strict=True))
    assert (erased[erased != x] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["none", "light", "imagenet"])
def test_images_normalised_later_are_the_same_to_the_bit(augment: str, channels: int) -> None:
    """Images stay uint8 until normalisation, even with random erasing, which timm applies after normalisation."""
    made = Augment(PIXELS, augment, random_erasing=0.5)
    now, later = (
        ImageDataset(Split(images(channels=channels), np.arange(12)), made, seed=3, raw=raw) for raw in (False, True)
    )
    x, raw = now.__getitems__([4, 5, 17])[0], later.__getitems__([4, 5, 17])[0]
    assert x.dtype == torch.float32 and raw.dtype == torch.uint8 and raw.shape[1] in (channels + 1, 4)
    assert torch.equal(PIXELS.normalize(raw), x)
    plain = Augment(PIXELS, augment)
    erased = ImageDataset(Split(images(channels=channels), np.arange(12)), plain, seed=3).__getitems__([4, 5, 17])[0]
    for image, key in zip(erased, image_keys(3, 0, images=np.array([4, 5, 17])), strict=True):
        seed_globals(int(key) ^ 1)
        made.erase(image)  # type: ignore[misc]
    assert torch.equal(erased, x) and (erased == 0).any()


@pytest.mark.gpu
def test_normalising_on_a_gpu_gives_the_same_bits() -> None:
    raw = torch.arange(256, dtype=torch.uint8).view(1, 1, 16, 16).expand(2, 3, 16, 16).contiguous()
    assert torch.equal(PIXELS.normalize(raw.cuda()).cpu(), PIXELS.normalize(raw))


class Processes(ImageDataset):
    """Gives the number of the worker process in place of the class."""

    def __getitems__(self, indices):
        return super().__getitems__(indices)[0], torch.tensor([os.getpid()])


def test_workers_live_through_all_epochs() -> None:
    """They must still receive the current epoch."""
    made = {}
    for workers in (0, 2):
        dataset = Processes(Split(images(), np.arange(12)), Augment(PIXELS, "imagenet"), seed=3)
        sampler = TrainSampler(dataset, seed=3)
        loader = DataLoader(
            dataset, 4, sampler=sampler, num_workers=workers, collate_fn=keep_batch, persistent_workers=workers > 0
        )
        seen, processes = [], set()
        for epoch in range(3):
            sampler.set_epoch(epoch)
            for x, process in loader:
                seen.append(x)
                processes.add(int(process))
                if epoch == 1:
                    break  # what the workers had prepared is thrown away
        made[workers] = seen
        assert len(processes) == max(1, workers)
    assert all(torch.equal(a, b) for a, b in zip(made[0], made[2], strict=True))


def test_workers_give_the_same_batches() -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        dataset = ImageDataset(Split(images(), np.arange(12)), Augment(PIXELS, "imagenet"), seed=3)
        sampler = TrainSampler(dataset, seed=3, epoch=2)
        loader = DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=keep_batch)
        first = [x for x, _ in loader]
        sampler.set_epoch(3)
        return [*first, *(x for x, _ in loader)]

    here, there = batches(0), batches(2)
    assert len(here) == 6 and all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


def files(folder: Path, count: int) -> FileImages:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("L", (16, 16), number).save(path)
    return FileImages([str(path) for path in paths], np.arange(count))


def test_a_file_that_breaks_during_a_run_is_left_out_of_training(tmp_path: Path) -> None:
    source = files(tmp_path, 4)
    dataset = ImageDataset(Split(source, np.arange(4)), Augment(PIXELS, "light"), max_unreadable=2)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    (tmp_path / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"skipped: image .*[12]\.png") as warned:
        x, y = dataset.__getitems__([3, 2, 1, 0])
    assert len(warned) == 2 and x.shape[0] == 2 and y.tolist() == [3, 0]
    dataset.epoch = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning a picture, whatever the epoch
        assert dataset.__getitems__([0, 1])[1].tolist() == [0]
    (tmp_path / "3.png").unlink()
    with pytest.raises(
        UnreadableImage, match=r"3\.png does not exist. It is number 3, and at most max_unreadable=2 are skipped"
    ):
        dataset.__getitems__([0, 3])
    with pytest.raises(UnreadableImage, match=r"1\.png does not exist. Repair or remove it, and run the command again"):
        ImageDataset(Split(source, np.arange(4)), Augment(PIXELS))[1]


def test_a_batch_of_which_nothing_can_be_read(tmp_path: Path) -> None:
    source = files(tmp_path, 4)
    for number in (1, 2):
        (tmp_path / f"{number}.png").unlink()
    plain = Augment(PIXELS)
    training, evaluation = (
        ImageDataset(Split(source, np.arange(4)), plain, max_unreadable=100, training=training)
        for training in (True, False)
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        x, y = training.__getitems__([1, 2])
        assert y.tolist() == [3] and torch.equal(x, training.__getitems__([3])[0])  # those behind are 2 and 3
        x, y = evaluation.__getitems__([1, 2])
        assert x.shape == (1, 3, PIXELS.image_size, PIXELS.image_size) and y.tolist() == [-1]
        for number in (0, 3):
            (tmp_path / f"{number}.png").unlink()
        for dataset in (training, evaluation):
            with pytest.raises(UnreadableImage, match="None of the 4 images can be read; check that the disk"):
                dataset.__getitems__([0, 1, 2, 3])


def test_bad_pictures_are_counted_over_workers_and_epochs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # as outside of pytest, which keeps a worker's warnings to itself
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr, flush=True))
    source = files(tmp_path, 40)
    (tmp_path / "7.png").write_bytes(b"gone")
    dataset = ImageDataset(Split(source, np.arange(40)), Augment(PIXELS, "light"), max_unreadable=1)
    for _ in range(3):  # workers are started anew for each
        loader = DataLoader(dataset, 4, num_workers=2, collate_fn=keep_batch)
        assert sum(len(y) for _, y in loader) == 39
    assert capfd.readouterr().err.count("7.png cannot be read") == 1
    (tmp_path / "30.png").unlink()
    with pytest.raises(
        UnreadableImage, match=r"^image \S*30\.png does not exist. It is number 2, and at most max_unreadable=1"
    ):
        list(DataLoader(dataset, 4, num_workers=2, collate_fn=keep_batch))


class Groups(ImageDataset):
    def __getitems__(self, indices):
        return torch.tensor([os.getpgid(0)]), torch.zeros(1)


def test_workers_do_not_get_the_signals_of_the_run() -> None:
    dataset = Groups(Split(images(), np.arange(12)), Augment(PIXELS))
    loader = DataLoader(dataset, 4, num_workers=1, collate_fn=keep_batch, worker_init_fn=detach_worker)
    assert os.getpgid(0) not in {int(group) for group, _ in loader}


def test_keys_are_spread_evenly() -> None:
    """Every bit of every number counts, and what is drawn is uniform."""
    numbers = np.arange(10_000)
    keys = [image_keys(*start, images=numbers) for start in ((0, 0), (0, 1), (1, 0), (2**63, 5), (-1, 5))]
    assert len(np.unique(np.concatenate(keys))) == 50_000
    draws = uniforms(keys[0], 3)
    assert draws.min() >= 0 and draws.max() < 1
    shares = np.stack([np.histogram(column, 20, (0, 1))[0] for column in draws.T]) / 10_000
    assert np.abs(shares - 0.05).max() < 0.01
    assert np.abs(np.corrcoef(draws.T) - np.eye(3)).max() < 0.04


# ---- samplers


@pytest.mark.parametrize("batch", [1, 4])
@pytest.mark.parametrize(("size", "world"), [(21, 2), (2001, 2), (5, 3), (1, 4), (0, 2), (7, 1)])
def test_evaluation_counts_every_image_once(size: int, world: int, batch: int) -> None:
    shards = [EvalSampler(size, batch, rank, world) for rank in range(world)]
    assert sorted(index for shard in shards for index in shard if index >= 0) == list(range(size))
    assert all(len(shard) == len(list(shard)) for shard in shards)
    assert all(isinstance(shard, DistributedSampler) for shard in shards), "Lightning would put its own in place"
    batches = [[list(shard)[i : i + batch] for i in range(0, len(shard), batch)] for shard in shards]
    assert len({len(own) for own in batches}) == 1, "a process would wait for another's last batch"
    alone = [list(range(i, min(i + batch, size))) for i in range(0, size, batch)]
    assert sorted(b for own in batches for b in own if min(b) >= 0) == alone, "batches are those of one process"


def test_an_image_that_does_not_count_has_no_class() -> None:
    dataset = ImageDataset(Split(images(), np.array([5, 2, 7])), Augment(PIXELS))
    x, y = dataset.__getitems__([1, -2])
    assert y.tolist() == [2, -1] and torch.equal(x[0], x[1])


@pytest.mark.parametrize("world", [1, 2, 3])
def test_a_step_has_the_same_images_on_any_number_of_processes(world: int) -> None:
    dataset = ImageDataset(Split(images(50), np.arange(50)), Augment(PIXELS))
    alone = list(TrainSampler(dataset, seed=1, step=12, rank=0, world=1))
    assert len(alone) == 48
    shards = [list(TrainSampler(dataset, seed=1, step=12 // world, rank=r, world=world)) for r in range(world)]
    for start in range(0, 48, 12):
        step = [i for shard in shards for i in shard[start // world : (start + 12) // world]]
        assert sorted(step) == sorted(alone[start : start + 12])


def test_repeated_augmentation() -> None:
    """Each image that comes up does so three times in a row; the epoch is as long as ever."""
    dataset = ImageDataset(Split(images(50), np.arange(50)), Augment(PIXELS, "light"))
    order = list(TrainSampler(dataset, seed=1, repeats=3, rank=0, world=1))
    assert len(order) == 50 and len(set(order)) == 50
    assert [i % 50 for i in order[0:48:3]] == [i % 50 for i in order[1:48:3]] == [i % 50 for i in order[2:48:3]]
    assert len({i % 50 for i in order}) == 17
    shards = [list(TrainSampler(dataset, seed=1, repeats=3, rank=rank, world=2)) for rank in range(2)]
    assert [i for pair in zip(*shards, strict=True) for i in pair] == order


def test_training_order() -> None:
    dataset = ImageDataset(Split(images(), np.arange(11)), Augment(PIXELS))
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
