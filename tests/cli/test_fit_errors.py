"""`acmix-zoo fit` with missing data, models and checkpoints: one line that helps, and no traceback."""

import os
from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from support.commands import assert_fails
from support.training import make_image_folder, three_epochs


def test_an_unknown_model_is_rejected(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = three_epochs(photos, tmp_path / "run", "--model.model=acmix_resnet_pcio")
    assert_fails(command, capsys, "unknown model 'acmix_resnet_pcio'", "acmix_resnet_pico")


def test_missing_data_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_fails(three_epochs(tmp_path / "nothing", tmp_path / "run"), capsys, str(tmp_path / "nothing"))


def test_a_checkpoint_of_a_different_model_is_rejected(
    run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--ckpt_path={run / 'checkpoints/best.ckpt'}"
    words = ("was started with model.model test_resnet", "--model.pretrained")
    assert_fails(three_epochs(photos, tmp_path / "a", "--model.model=test_efficientnet", given), capsys, *words)
    two = make_image_folder(tmp_path / "two", classes=2)
    assert_fails(three_epochs(two, tmp_path / "b", given), capsys, "contains test_resnet", "with 3 classes", "with 2")


def test_a_run_is_not_overwritten(run: Path, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert_fails(three_epochs(photos, run), capsys, "already contains a run", "--ckpt_path last")


def test_missing_checkpoints_are_rejected(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = three_epochs(photos, tmp_path / "run")
    assert_fails([*command, "--ckpt_path=none.ckpt"], capsys, "none.ckpt does not exist", "last, best")
    assert_fails(["test", *command[1:]], capsys, "`test` needs trained weights", "--model.pretrained")
    start = tmp_path / "start.yaml"
    start.write_text("model: {pretrained: true}\n")  # as in a recipe: what training starts from, with a new classifier
    assert_fails(
        ["test", *command[1:], f"--config={start}"], capsys, "`test` needs trained weights", "--model.pretrained"
    )
    assert_fails(["test", *command[1:], "--ckpt_path=best"], capsys, "best.ckpt does not exist")


def test_a_damaged_checkpoint_is_rejected(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.ckpt"
    path.write_bytes(os.urandom(1000))
    assert_fails(
        [*three_epochs(photos, tmp_path / "run"), f"--ckpt_path={path}"], capsys, str(path), "not a checkpoint"
    )
    torch.save({"weight": torch.zeros(2)}, path)
    assert_fails([*three_epochs(photos, tmp_path / "run"), f"--ckpt_path={path}"], capsys, "--model.pretrained")
