"""Runs that are killed at random times and resumed: `make test-distributed`."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.box_data import write_coco
from support.processes import PLAIN, Process, command, differences, fit
from support.tasks import SEGMENTATION, write_masked_images

from acmix_zoo.training.checkpoints import is_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

KILLS = {"classification": 24, "segmentation": 8, "detection": 8}
# Everything that has a state: batch norm, dropout, stochastic depth, EMA, MixUp, erasing, schedule and momentum.
EVERYTHING = {
    **PLAIN,
    "data.random_erasing": 0.25, "data.mixup": 0.8, "data.cutmix": 1.0, "data.repeats": 2,
    "model.model": "acmix_resnet_pico", "model.model_kwargs": "{drop_rate: 0.1, drop_path_rate: 0.1}",
    "model.ema_decay": 0.95, "run.save_every": 3,
    "trainer.max_epochs": 3, "trainer.limit_train_batches": 25, "trainer.accumulate_grad_batches": 1,
}  # fmt: skip
# Images with boxes that the test writes, and a network with batch norm.
DETECTION = {
    "task": "detection", "data.image_size": 48, "data.max_size": 64, "data.multi_scale": "[40, 48, 56]",
    "data.vflip": 0.5, "data.batch_size": 2, "model.model": "acmix_resnet_pico",
    "model.model_kwargs": "{drop_path_rate: 0.1}", "model.detector": "fcos", "model.strides": "[4, 8, 16]",
    "model.channels": 64, "model.ema_decay": 0.95,
    "trainer.max_epochs": 3, "trainer.accelerator": "cpu", "trainer.logger": "false", "run.save_every": 3,
    "speed.loader_seconds": 0,
}  # fmt: skip
VARIANTS = [
    {},
    {"run__save_every": 1},  # many writes, so that some kills hit one
    {"data__num_workers": 2},
    {"trainer__accumulate_grad_batches": 2},
]


@pytest.mark.parametrize("task", KILLS)
def test_a_run_that_is_killed_repeatedly_gives_the_same_weights(
    task: str, tmp_path: Path, figure: Callable[..., None]
) -> None:
    """Its final weights are bit-identical to those of an uninterrupted run."""
    base = EVERYTHING
    if task == "segmentation":
        pytest.importorskip("segmentation_models_pytorch")
        base = {**SEGMENTATION, "data.source": write_masked_images(tmp_path / "shapes", (40, 4, 3))}
    if task == "detection":
        base = {**DETECTION, "data.source": write_coco(tmp_path / "boxes", 40, 4, 3)}
    generator = random.Random(time.time_ns())
    seed = generator.randrange(10**6)
    generator.seed(seed)
    kills = starts = while_writing = damaged = 0
    uninterrupted: dict[int, Path] = {}
    seconds: dict[int, float] = {}  # that the uninterrupted run takes from its first step on this machine
    campaign = 0
    while kills < KILLS[task]:
        variant = campaign % len(VARIANTS)
        if variant not in uninterrupted:
            uninterrupted[variant] = tmp_path / f"uninterrupted{variant}"
            arguments = command(fit(uninterrupted[variant], base, **VARIANTS[variant]))
            process = Process(arguments, tmp_path / "uninterrupted.log")
            process.wait_for("images per step")
            started = time.monotonic()
            process.end()
            seconds[variant] = time.monotonic() - started
        folder = tmp_path / f"killed{campaign}"
        arguments = command(fit(folder, base, **VARIANTS[variant]))
        for attempt in range(40):
            starts += 1
            process = Process(arguments, tmp_path / f"{campaign}-{attempt}.log")
            process.wait_for("images per step")
            if not (folder / "weights/config.json").exists():  # otherwise the run is already finished
                time.sleep(generator.uniform(0, seconds[variant]))
            else:
                process.popen.wait()
            if process.popen.poll() is None:
                process.kill()
                checkpoints = list((folder / "checkpoints").glob("*.ckpt"))
                kills += bool(checkpoints)  # without a checkpoint there is nothing to resume
                while_writing += bool(checkpoints) and any((folder / "checkpoints").glob("*.new"))
                damaged += sum(not is_checkpoint(path) for path in checkpoints)
                continue
            process.end()
            break
        else:
            raise AssertionError(f"seed {seed}: the run was never finished:\n{process.output}")
        found = differences(uninterrupted[variant] / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt")
        assert not found, f"seed {seed}, {VARIANTS[variant]}: {len(found)} tensors differ: {found[:5]}"
        one, two = ((f / "weights/model.safetensors").read_bytes() for f in (uninterrupted[variant], folder))
        assert one == two
        campaign += 1
    assert damaged == 0
    figure(
        ("" if task == "classification" else f"{task}: ") + "kill -9 at random times, then resumed",
        f"{kills} kills after the first checkpoint in {campaign} runs ({starts} starts, seed {seed}), "
        f"{while_writing} of them while a checkpoint was written: 0 tensors differ, 0 checkpoints damaged",
    )
