"""Checkpoints within an epoch, previous checkpoints, and damaged ones."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from support.training import (
    CallAt,
    assert_same_run,
    cut_power,
    train_run,
)

from acmix_zoo.training import RunFolder
from acmix_zoo.training.checkpoints import is_checkpoint


def test_a_damaged_checkpoint_is_replaced_by_the_previous_one(image_folder: Path, tmp_path: Path) -> None:
    uninterrupted = train_run(tmp_path / "uninterrupted", image_folder)
    with pytest.raises(RuntimeError, match="power"):
        train_run(tmp_path / "cut", image_folder, CallAt(cut_power, epoch=1, batch=4), save_every=2)
    run = RunFolder(str(tmp_path / "cut"))
    steps = [torch.load(path, weights_only=True)["global_step"] for path in (run.last, run.checkpoints.previous)]
    assert steps == [10, 8]  # the crash was in step 11
    assert run.checkpoints.find_newest() == run.last
    run.last.write_bytes(run.last.read_bytes()[:1000])  # as a power cut may leave it
    assert run.checkpoints.find_newest() == run.checkpoints.previous
    resumed = train_run(tmp_path / "cut", image_folder, resume=run.checkpoints.previous, save_every=2)
    assert_same_run(uninterrupted, resumed)


def test_a_run_with_only_damaged_checkpoints_is_rejected(tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path))
    assert run.checkpoints.find_newest() is None
    run.last.parent.mkdir()
    run.last.write_bytes(b"")
    assert not is_checkpoint(run.last)
    with pytest.raises(ValueError, match=r"all checkpoints are damaged: .*last\.ckpt\. To start the run again"):
        run.checkpoints.find_newest()
