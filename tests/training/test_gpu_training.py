"""Training on a GPU: the same batches and steps as on a CPU, half precision, averages on the device, DDP over NCCL.

`make test-gpu` runs these on a GPU; on a CPU, `make test-distributed` runs those that do not need a GPU.
"""

from __future__ import annotations

import itertools
import json
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from support.processes import command, differences, fit, largest_difference, run

from acmix_zoo.data import ImageDataModule
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.tasks.ema import EMA

pytestmark = pytest.mark.timeout(900)
ACCELERATORS = pytest.mark.parametrize("accelerator", ["cpu", pytest.param("gpu", marks=pytest.mark.gpu)])
QUIET: dict[str, Any] = {
    "logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "enable_model_summary": False,
}  # fmt: skip


def train(folder: Path, accelerator: str, **changes: Any) -> Path:
    """Train for 20 steps, and return the last checkpoint."""
    run(command(fit(folder, trainer__accelerator=accelerator, **changes)), folder.with_suffix(".log"))
    return folder / "checkpoints/last.ckpt"


class Seen(ClassificationTask):
    """Records the training batches that it receives."""

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        self.batches = [*getattr(self, "batches", []), batch]
        return super().training_step(batch, batch_idx)


def fitted(accelerator: str, *callbacks: L.Callback) -> Seen:
    """Train for three steps in this process."""
    L.seed_everything(0, verbose=False)
    data = ImageDataModule("digits", image_size=32, batch_size=16, augment="light")
    task = Seen("acmix_swin_pico", num_classes=data.num_classes)
    short = {"max_epochs": 1, "limit_train_batches": 3, "limit_val_batches": 0}
    L.Trainer(accelerator=accelerator, devices=1, callbacks=list(callbacks), **short, **QUIET).fit(task, data)
    return task


@ACCELERATORS
def test_batches_are_normalised_and_on_the_device(accelerator: str) -> None:
    """They are the same batches as on the CPU."""
    found, expected = fitted(accelerator).batches, fitted("cpu").batches
    assert len(found) == 3 and found[0][0].device.type == ("cuda" if accelerator == "gpu" else "cpu")
    for (images, labels, *_), (same_images, same_labels, *_) in zip(found, expected, strict=True):
        assert images.dtype == torch.float32 and images.std() > 0.2  # 0 … 255 would be far above
        torch.testing.assert_close(images.cpu(), same_images, rtol=1e-5, atol=1e-5)
        assert torch.equal(labels.cpu(), same_labels)


@ACCELERATORS
def test_the_average_is_on_the_device_of_the_training(accelerator: str) -> None:
    class Watch(L.Callback):
        devices: set[str]

        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            (average,) = (callback for callback in trainer.callbacks if isinstance(callback, EMA))
            module = average._average_model.module
            self.devices = {t.device.type for t in itertools.chain(module.parameters(), module.buffers())}

    watch = Watch()
    fitted(accelerator, EMA(0.9), watch)
    assert watch.devices == {"cuda" if accelerator == "gpu" else "cpu"}


@ACCELERATORS
@pytest.mark.distributed
def test_one_process_of_ddp_is_plain_training(accelerator: str, tmp_path: Path) -> None:
    """DDP uses NCCL on a GPU and gloo on a CPU."""
    one = train(tmp_path / "plain", accelerator, trainer__devices=1)
    ddp = train(tmp_path / "ddp", accelerator, trainer__devices=1, trainer__strategy="ddp")
    assert largest_difference(one, ddp) < 1e-5
    record = json.loads((tmp_path / "ddp/weights/config.json").read_text())["acmix_zoo"]
    assert record["environment"]["devices"] == 1


@ACCELERATORS
@pytest.mark.distributed
def test_training_repeats_to_the_bit(accelerator: str, tmp_path: Path) -> None:
    exact = {"trainer__devices": 1, "trainer__deterministic": "true"}
    assert differences(*(train(tmp_path / name, accelerator, **exact) for name in ("one", "two"))) == []


@pytest.mark.gpu
@pytest.mark.distributed
def test_a_gpu_takes_the_steps_of_a_cpu(tmp_path: Path) -> None:
    """Twenty steps of SGD in float32. Only the order of sums differs."""
    found, expected = (train(tmp_path / name, name, trainer__devices=1) for name in ("gpu", "cpu"))
    assert largest_difference(found, expected) < 1e-3


@pytest.mark.gpu
@pytest.mark.distributed
@pytest.mark.parametrize("precision", ["16-mixed", "bf16-mixed", "bf16-true"])
def test_half_precision_trains(precision: str, tmp_path: Path) -> None:
    """The validation loss equals that of float32 up to rounding, which 20 steps of training do not amplify."""

    def loss(folder: Path, **changes: Any) -> float:
        train(folder, "gpu", trainer__devices=1, **changes)
        history = torch.load(folder / "checkpoints/last.ckpt", weights_only=True)["callbacks"]["RunFolder"]["history"]
        return float(history[-1]["val/loss"])

    plain, half = loss(tmp_path / "plain"), loss(tmp_path / "half", trainer__precision=precision)
    assert half == pytest.approx(plain, abs=0.05)


@pytest.mark.gpu
@pytest.mark.distributed
def test_compiled_training(tmp_path: Path) -> None:
    plain = train(tmp_path / "plain", "gpu", trainer__devices=1)
    compiled = train(tmp_path / "compiled", "gpu", trainer__devices=1, model__compile="true")
    assert largest_difference(plain, compiled) < 1e-3
