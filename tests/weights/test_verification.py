"""Verifying a weight folder: damage and wrong records are found."""

import shutil
from pathlib import Path

import pytest
import safetensors.torch
from support.weight_folders import (
    SHIPPED,
    damage_last_byte,
    edit_config,
)

from acmix_zoo.weights import check_folder


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda f: (f / "model.safetensors").write_bytes((f / "model.safetensors").read_bytes()[:-9]), "file_size"),
        (lambda f: damage_last_byte(f / "model.safetensors"), "sha256"),
        (lambda f: (f / "model.safetensors").unlink(), "model.safetensors"),
        (lambda f: (f / "config.json").write_text("{"), "damaged"),
        (lambda f: (f / "config.json").write_text("[]"), "architecture"),
        (lambda f: (f / "config.json").unlink(), "has no config.json"),
        (lambda f: edit_config(f, architecture="acmix_resnet99"), "acmix_resnet99"),
        (lambda f: edit_config(f, architecture="acmix_swin_pico"), "missing"),
        (lambda f: shutil.rmtree(f / "test"), "example.safetensors is missing. If this is the Hub's cache"),
        (lambda f: (f / "test/example.safetensors").write_bytes(b""), "does not contain an input and its logits"),
        (lambda f: edit_config(f, acmix_zoo={"metrics": -1}), "the record's metrics are -1. Expected a list"),
        (lambda f: edit_config(f, num_classes="x"), "num_classes is 'x'. Expected a whole number"),
        (lambda f: move_logits(f), "the relative error of the logits is"),
    ],
)
def test_damage_is_found(written: Path, tmp_path: Path, damage, message: str) -> None:
    folder = Path(shutil.copytree(written, tmp_path / "w"))
    damage(folder)
    assert message in " ".join(check_folder(folder))


def move_logits(folder: Path) -> None:
    """Change one stored logit by a thousandth of the largest one."""
    example = safetensors.torch.load_file(folder / "test" / "example.safetensors")
    example["logits"][0, 0] += example["logits"].abs().max() * 1e-3
    safetensors.torch.save_file(example, folder / "test" / "example.safetensors")


def test_wrong_records_are_found(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(SHIPPED, tmp_path / "shipped"))
    edit_config(
        folder,
        acmix_zoo={"params": 5, "macs": 6, "metrics": [{"dataset": "d", "split": "s", "name": "top1", "value": 93}]},
    )
    problems = check_folder(folder)
    for message in (
        "top1 on d is 93. Expected 0 to 1",
        "params: counted 653054, but config.json says 5",
        "macs: counted 10371584",
    ):
        assert any(message in problem for problem in problems)
    edit_config(folder, acmix_zoo={"macs": None, "environment": "mine", "metrics": [3]})
    problems = check_folder(folder)
    for message in (
        "macs is None. Expected int",
        "environment is 'mine'. Expected dict",
        "metric 3 does not have",
    ):
        assert any(message in problem for problem in problems)
