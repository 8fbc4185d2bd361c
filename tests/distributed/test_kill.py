"""Runs that are killed at random and started again with the same command: `make test-distributed`."""

import random
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from support.processes import PLAIN, Process, command, differences, fit, run

from acmix_zoo.training.checkpoints import is_checkpoint

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(1500)]

KILLS = 24
# All that has a state: batch norm, dropout, stochastic depth, moving average, mixing, erasing, schedule, momentum.
RICH = {
    **PLAIN,
    "data.random_erasing": 0.25, "data.mixup": 0.8, "data.cutmix": 1.0, "data.repeats": 2,
    "model.model": "acmix_resnet_pico", "model.model_kwargs": "{drop_rate: 0.1, drop_path_rate: 0.1}",
    "model.ema_decay": 0.95, "run.save_every": 3,
    "trainer.max_epochs": 3, "trainer.limit_train_batches": 25, "trainer.accumulate_grad_batches": 1,
}  # fmt: skip
VARIANTS = [
    {},
    {"run__save_every": 1},  # many writes, so that some kills hit one
    {"data__num_workers": 2},
    {"trainer__accumulate_grad_batches": 2},
]


def test_random_kills(tmp_path: Path, figure: Callable[..., None]) -> None:
    """The run that was killed again and again ends with the weights of the one that never was, to the bit."""
    generator = random.Random(time.time_ns())
    seed = generator.randrange(10**6)
    generator.seed(seed)
    kills = starts = torn = damaged = 0
    undisturbed: dict[int, Path] = {}
    campaign = 0
    while kills < KILLS:
        which = campaign % len(VARIANTS)
        if which not in undisturbed:
            undisturbed[which] = tmp_path / f"whole{which}"
            run(command(fit(undisturbed[which], RICH, **VARIANTS[which])), tmp_path / "whole.log")
        folder = tmp_path / f"killed{campaign}"
        words = command(fit(folder, RICH, **VARIANTS[which]))
        for attempt in range(40):
            starts += 1
            process = Process(words, tmp_path / f"{campaign}-{attempt}.log")
            process.wait_for("images per step")
            if not (folder / "weights/config.json").exists():  # else there is nothing left to disturb
                time.sleep(generator.uniform(0, 7))
            else:
                process.popen.wait()
            if process.popen.poll() is None:
                process.kill()
                checkpoints = list((folder / "checkpoints").glob("*.ckpt"))
                kills += bool(checkpoints)  # before the first one there is nothing to go on with
                torn += bool(checkpoints) and any((folder / "checkpoints").glob("*.new"))
                damaged += sum(not is_checkpoint(path) for path in checkpoints)
                continue
            process.end()
            break
        else:
            raise AssertionError(f"seed {seed}: never came to its end:\n{process.said}")
        found = differences(undisturbed[which] / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt")
        assert not found, f"seed {seed}, {VARIANTS[which]}: {len(found)} tensors differ: {found[:5]}"
        one, two = ((f / "weights/model.safetensors").read_bytes() for f in (undisturbed[which], folder))
        assert one == two
        campaign += 1
    assert damaged == 0
    figure(
        "kill -9 at random, the same command again",
        f"{kills} kills after the first checkpoint in {campaign} runs ({starts} starts, seed {seed}), {torn} of them "
        "while one was written: 0 tensors differ, 0 checkpoints damaged",
    )
