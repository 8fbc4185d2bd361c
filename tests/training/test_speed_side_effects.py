"""Measuring the training speed changes neither the weights nor the batches that are reported."""

import csv
import re
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from support import processes

pytest.importorskip("lightning")

import lightning as L
from PIL import Image
from support.streams import write_shards
from support.training import make_trainer

from acmix_zoo.data import ImageDataModule
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.speed import Speed

STREAM = {"streaming": True, "epoch_images": 24, "num_workers": 1, "val_fraction": 0}


def make_images(folder: Path) -> Path:
    generator = np.random.default_rng(0)
    for c in range(2):
        (folder / f"class{c}").mkdir(parents=True)
        for i in range(16):
            pixels = generator.integers(0, 256, (40, 40, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{c}" / f"{i}.png")
    return folder


def train(source: Path, folder: Path, *callbacks: L.Callback, **options: Any) -> RunFolder:
    torch.manual_seed(0)
    run = RunFolder(str(folder))
    data = ImageDataModule(str(source), image_size=32, batch_size=6, augment="imagenet", mixup=0.2, **options)
    task = ClassificationTask("test_resnet", data.num_classes, model_kwargs={"drop_rate": 0.2}, ema_decay=0.9)
    make_trainer(run, *callbacks, epochs=2, log_every_n_steps=1).fit(task, data)
    return run


@pytest.mark.parametrize(
    "options",
    [{"num_workers": 0}, pytest.param({"num_workers": 1}, marks=pytest.mark.slow), STREAM],
    ids=["0 workers", "1 worker", "stream"],
)
def test_measuring_does_not_change_the_weights(options: dict[str, Any], tmp_path: Path) -> None:
    source = tmp_path / "images"
    if "streaming" in options:
        write_shards(source, "parquet", [16, 16])
    else:
        make_images(source)
    plain = train(source, tmp_path / "plain", **options)
    measured = train(source, tmp_path / "measured", Speed(loader_seconds=0.1, verbose=True), **options)
    one, two = (torch.load(run.last, weights_only=True) for run in (plain, measured))
    for key in ("state_dict", "current_model_state"):
        assert one[key].keys() == two[key].keys()
        assert all(torch.equal(one[key][name], two[key][name]) for name in one[key])
    row = measured.history[-1]
    assert row["speed/images_per_second"] > 0 and 0 < row["speed/data_wait"] < 1 and 0 < row["speed/mfu"] < 1
    assert row["speed/eta_minutes"] == 0


def test_batches_are_described_by_the_loader_of_the_trainer(tmp_path: Path) -> None:
    data = ImageDataModule(str(make_images(tmp_path / "images")), image_size=32, batch_size=6)
    seen = []

    class RecordBatches(L.Callback):
        def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, i: int) -> None:
            seen.append((trainer.train_dataloader.sampler.order()[i * 6].item(), data.describe_batch(i)[0]))

    task = ClassificationTask("test_resnet", num_classes=2)
    trainer = make_trainer(
        Speed(loader_seconds=0.1, verbose=True),
        RecordBatches(),
        epochs=2,
        enable_checkpointing=False,
        limit_val_batches=0,
    )
    trainer.fit(task, data)
    dataset: Any = trainer.train_dataloader.dataset  # type: ignore[union-attr]
    assert len(seen) == 8 and [name for _, name in seen] == dataset.names([index for index, _ in seen])


def test_an_unreadable_image_is_reported_once(tmp_path: Path) -> None:
    folder = make_images(tmp_path / "images")
    data = ImageDataModule(str(folder), image_size=32, batch_size=6, val_fraction=0)
    data.setup("fit")
    content = (folder / "class0/3.png").read_bytes()
    (folder / "class0/3.png").write_bytes(content[:60] + bytes(100) + content[160:])  # damaged after the check
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        trainer = make_trainer(Speed(loader_seconds=5, verbose=True), epochs=2, enable_checkpointing=False)
        trainer.fit(ClassificationTask("test_resnet", num_classes=2), data)
    assert sum("skipped" in str(warning.message) for warning in caught) == 1


@pytest.mark.distributed
def test_two_processes_report_their_sum_and_train_the_same(tmp_path: Path) -> None:
    for seconds in (0.3, 0):
        changes = {"trainer__devices": 2, "trainer__strategy": "ddp", "speed__loader_seconds": seconds}
        changes["run__verbose"] = "true"
        arguments = processes.torchrun(processes.fit(tmp_path / str(seconds), **changes), 2)
        printed = processes.run(arguments, tmp_path / "log")
        assert printed.count("data loading alone reaches ") == (1 if seconds else 0)
        assert re.search(r"Training at \d+ images/s, \d+ % of the time waiting for data, MFU [\d.]+ % of 2 × ", printed)
    for row in csv.DictReader((tmp_path / "0.3/metrics.csv").open()):
        during_steps, per_epoch = float(row["speed/images_per_second"]), float(row["images_per_second"])
        assert 0.5 < during_steps / per_epoch < 2  # both of two processes; an epoch has time between its steps
        assert 0 < float(row["speed/mfu"]) < 1 and 0 < float(row["speed/data_wait"]) < 1
    assert processes.differences(*(tmp_path / str(s) / "checkpoints/last.ckpt" for s in (0.3, 0))) == []
