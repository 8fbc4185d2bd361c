"""`ImageDataset`: batches equal timm's transforms, depend only on (seed, epoch, index), and skip unreadable images."""

import os
import random
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch.utils.data import DataLoader

from acmix_zoo.data import UnreadableImage
from acmix_zoo.data.augment import Augment, Pixels, image_keys, seed_globals
from acmix_zoo.data.batches import detach_worker, keep_batch
from acmix_zoo.data.image_dataset import ImageDataset
from acmix_zoo.data.samplers import TrainSampler
from acmix_zoo.data.sources.image_sets import ArrayImages, FileImages
from acmix_zoo.data.splits import Split

PIXELS = Pixels(16, (0.4, 0.5, 0.6), (0.2, 0.25, 0.3), "bicubic", 1.0)


def random_images(count: int = 12, size: int = 16, channels: int = 1) -> ArrayImages:
    pixels = np.random.default_rng(0).integers(0, 256, (count, channels, size, size), dtype=np.uint8)
    return ArrayImages(pixels, np.arange(count) % 3)


@pytest.mark.parametrize("channels", [1, 3])
def test_images_in_memory_equal_timm_transform(channels: int) -> None:
    source = random_images(channels=channels)
    dataset = ImageDataset(Split(source, np.array([5, 2, 7])), Augment(PIXELS))
    assert dataset.array is not None
    x, y = dataset.__getitems__([0, 2])
    assert x.shape == (2, 3, 16, 16) and x.dtype == torch.float32 and y.tolist() == [2, 1] and y.dtype == torch.int64
    transform = PIXELS.eval_transform()
    expected = torch.stack([transform(source.image(5)), transform(source.image(7))])
    torch.testing.assert_close(x, expected, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(dataset[2][0], expected[1], atol=1e-6, rtol=1e-6)


def test_images_of_another_size_equal_timm_transform() -> None:
    pixels = Pixels(32, PIXELS.mean, PIXELS.std, "bilinear", 0.875)
    source = random_images(size=20)
    x, _ = ImageDataset(Split(source, np.arange(12)), Augment(pixels)).__getitems__([3])
    torch.testing.assert_close(x[0], pixels.eval_transform()(source.image(3)), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("size", [(1, 1), (1, 40), (300, 7)])
def test_images_of_any_shape_become_square(tmp_path: Path, size: tuple[int, int]) -> None:
    Image.new("L", size, 255).save(tmp_path / "odd.png")
    source = FileImages([str(tmp_path / "odd.png")], np.zeros(1, np.int64))
    for augment in ("none", "light", "imagenet"):
        x, _ = ImageDataset(Split(source, np.arange(1)), Augment(PIXELS, augment)).__getitems__([0])
        assert x.shape == (1, 3, 16, 16) and x.isfinite().all()


@pytest.mark.parametrize("augment", ["light", "imagenet", "rand-m9-mstd0.5-inc1", "augmix-m5-w4-d2"])
def test_augmentation_depends_only_on_seed_epoch_and_index(augment: str) -> None:
    dataset = ImageDataset(Split(random_images(), np.arange(12)), Augment(PIXELS, augment, random_erasing=0.5), seed=7)
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


def test_auto_augment_runs_at_full_strength() -> None:
    # at this strength, timm posterises to 0 bits, which Pillow 13 refuses
    dataset = ImageDataset(Split(random_images(), np.arange(12)), Augment(PIXELS, "rand-m10-n8-inc1"))
    for epoch in range(15):
        dataset.epoch = epoch
        assert dataset.__getitems__(list(range(12)))[0].isfinite().all()


def test_random_erasing_sets_pixels_to_the_mean() -> None:
    dataset = ImageDataset(Split(random_images(), np.arange(12)), Augment(PIXELS, random_erasing=1.0))
    plain = ImageDataset(Split(random_images(), np.arange(12)), Augment(PIXELS))
    erased, x = (d.__getitems__(list(range(12)))[0] for d in (dataset, plain))
    assert all((a != b).any() and (a == b).any() for a, b in zip(erased, x, strict=True))
    assert (erased[erased != x] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("augment", ["none", "light", "imagenet"])
def test_normalising_later_gives_identical_images(augment: str, channels: int) -> None:
    """Images stay uint8 until normalisation, even with random erasing, which timm applies after normalisation."""
    erasing = Augment(PIXELS, augment, random_erasing=0.5)
    now, later = (
        ImageDataset(Split(random_images(channels=channels), np.arange(12)), erasing, seed=3, raw=raw)
        for raw in (False, True)
    )
    x, raw = now.__getitems__([4, 5, 17])[0], later.__getitems__([4, 5, 17])[0]
    assert x.dtype == torch.float32 and raw.dtype == torch.uint8 and raw.shape[1] in (channels + 1, 4)
    assert torch.equal(PIXELS.normalize(raw), x)
    plain = Augment(PIXELS, augment)
    erased = ImageDataset(Split(random_images(channels=channels), np.arange(12)), plain, seed=3).__getitems__(
        [4, 5, 17]
    )[0]
    for image, key in zip(erased, image_keys(3, 0, images=np.array([4, 5, 17])), strict=True):
        seed_globals(int(key) ^ 1)
        erasing.erase(image)  # type: ignore[misc]
    assert torch.equal(erased, x) and (erased == 0).any()


def test_negative_indices_give_class_minus_one() -> None:
    dataset = ImageDataset(Split(random_images(), np.array([5, 2, 7])), Augment(PIXELS))
    x, y = dataset.__getitems__([1, -2])
    assert y.tolist() == [2, -1] and torch.equal(x[0], x[1])


class WorkerIds(ImageDataset):
    """Returns the id of the worker process in place of the class."""

    def __getitems__(self, indices):
        return super().__getitems__(indices)[0], torch.tensor([os.getpid()])


def test_persistent_workers_get_the_current_epoch() -> None:
    """Persistent workers are started only once, but augmentation depends on the epoch."""
    batches = {}
    for workers in (0, 2):
        dataset = WorkerIds(Split(random_images(), np.arange(12)), Augment(PIXELS, "imagenet"), seed=3)
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
                    break  # discards batches that the workers have prepared
        batches[workers] = seen
        assert len(processes) == max(1, workers)
    assert all(torch.equal(a, b) for a, b in zip(batches[0], batches[2], strict=True))


def test_batches_do_not_depend_on_the_number_of_workers() -> None:
    def batches(workers: int) -> list[torch.Tensor]:
        dataset = ImageDataset(Split(random_images(), np.arange(12)), Augment(PIXELS, "imagenet"), seed=3)
        sampler = TrainSampler(dataset, seed=3, epoch=2)
        loader = DataLoader(dataset, 4, sampler=sampler, num_workers=workers, collate_fn=keep_batch)
        first = [x for x, _ in loader]
        sampler.set_epoch(3)
        return [*first, *(x for x, _ in loader)]

    here, there = batches(0), batches(2)
    assert len(here) == 6 and all(torch.equal(a, b) for a, b in zip(here, there, strict=True))


class ProcessGroups(ImageDataset):
    def __getitems__(self, indices):
        return torch.tensor([os.getpgid(0)]), torch.zeros(1)


def test_workers_are_in_a_process_group_of_their_own() -> None:
    dataset = ProcessGroups(Split(random_images(), np.arange(12)), Augment(PIXELS))
    loader = DataLoader(dataset, 4, num_workers=1, collate_fn=keep_batch, worker_init_fn=detach_worker)
    assert os.getpgid(0) not in {int(group) for group, _ in loader}


def write_numbered_images(folder: Path, count: int) -> FileImages:
    paths = [folder / f"{number}.png" for number in range(count)]
    for number, path in enumerate(paths):
        Image.new("L", (16, 16), number).save(path)
    return FileImages([str(path) for path in paths], np.arange(count))


def test_unreadable_images_are_skipped_up_to_the_limit(tmp_path: Path) -> None:
    source = write_numbered_images(tmp_path, 4)
    dataset = ImageDataset(Split(source, np.arange(4)), Augment(PIXELS, "light"), max_unreadable=2)
    (tmp_path / "2.png").write_bytes((tmp_path / "2.png").read_bytes()[:40])
    (tmp_path / "1.png").unlink()
    with pytest.warns(UserWarning, match=r"skipped: image .*[12]\.png") as warned:
        x, y = dataset.__getitems__([3, 2, 1, 0])
    assert len(warned) == 2 and x.shape[0] == 2 and y.tolist() == [3, 0]
    dataset.epoch = 1
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # one warning per image, not per epoch
        assert dataset.__getitems__([0, 1])[1].tolist() == [0]
    (tmp_path / "3.png").unlink()
    with pytest.raises(
        UnreadableImage, match=r"3\.png does not exist. 3 images are unreadable, and at most max_unreadable=2"
    ):
        dataset.__getitems__([0, 3])
    with pytest.raises(UnreadableImage, match=r"1\.png does not exist. Repair or remove the file"):
        ImageDataset(Split(source, np.arange(4)), Augment(PIXELS))[1]


def test_batches_without_a_readable_image(tmp_path: Path) -> None:
    source = write_numbered_images(tmp_path, 4)
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
        assert y.tolist() == [3] and torch.equal(x, training.__getitems__([3])[0])  # the next images are 2 and 3
        x, y = evaluation.__getitems__([1, 2])
        assert x.shape == (1, 3, PIXELS.image_size, PIXELS.image_size) and y.tolist() == [-1]
        for number in (0, 3):
            (tmp_path / f"{number}.png").unlink()
        for dataset in (training, evaluation):
            with pytest.raises(UnreadableImage, match=r"None of the 4 images can be read\. Check that the disk"):
                dataset.__getitems__([0, 1, 2, 3])


def test_unreadable_images_are_counted_over_workers_and_epochs(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    # print warnings as outside of pytest, which hides those of workers
    monkeypatch.setattr(warnings, "showwarning", lambda message, *_: print(message, file=sys.stderr, flush=True))
    source = write_numbered_images(tmp_path, 40)
    (tmp_path / "7.png").write_bytes(b"gone")
    dataset = ImageDataset(Split(source, np.arange(40)), Augment(PIXELS, "light"), max_unreadable=1)
    for _ in range(3):  # each loader starts its own workers
        loader = DataLoader(dataset, 4, num_workers=2, collate_fn=keep_batch)
        assert sum(len(y) for _, y in loader) == 39
    assert capfd.readouterr().err.count("7.png cannot be read") == 1
    (tmp_path / "30.png").unlink()
    batches = iter(DataLoader(dataset, 4, num_workers=2, collate_fn=keep_batch))
    with pytest.raises(UnreadableImage, match=r"^image \S*30\.png does not exist. 2 images are unreadable"):
        list(batches)
    batches._shutdown_workers()  # type: ignore[union-attr]  # the garbage collector would wait 5 s for each of them
