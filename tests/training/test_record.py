"""The record of a run names its initial weights and what computed it."""

import pytest

pytest.importorskip("lightning")

import shutil
from pathlib import Path

import lightning as L
from support.training import CrashAfterFirstEpoch, callback_option, fit_arguments
from support.weight_folders import RECORD, SHIPPED, write_weights
from torch import nn

from acmix_zoo.cli.main import main
from acmix_zoo.layers import ACmix2d
from acmix_zoo.ops import BACKENDS
from acmix_zoo.ops.backends.native.build import INSTRUCTION_SETS
from acmix_zoo.training.environment import run_environment
from acmix_zoo.training.export_weights import export_run
from acmix_zoo.training.record import parent_license, parent_name
from acmix_zoo.weights import create_model, read_config


def test_the_record_names_the_weights_that_a_run_started_from(tmp_path: Path) -> None:
    cfg = create_model("acmix_resnet_pico", pretrained=True, num_classes=3).pretrained_cfg
    assert parent_name(True, cfg) == "acmix_resnet_pico.fashion_mnist"  # not: True
    assert parent_name("fashion_mnist", cfg) == "acmix_resnet_pico.fashion_mnist"  # a tag
    assert parent_name("runs/x/weights", cfg) == "runs/x/weights" and parent_name(False, cfg) is None
    assert parent_name(str(SHIPPED), {}) == "acmix_resnet_pico.fashion_mnist"
    assert parent_name(str(tmp_path / "start.pth"), {}) == "start.pth"


def test_the_record_states_the_licence_of_the_weights_that_a_run_started_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("tiny_imagenet").mkdir()  # a data set; the tag takes precedence
    cfg = create_model("acmix_resnet_nano", pretrained=True, num_classes=3).pretrained_cfg
    for start in (True, "tiny_imagenet", str(SHIPPED.with_name("acmix_resnet_nano.tiny_imagenet"))):
        assert str(parent_license(start, cfg)).startswith("research use only")
    assert str(parent_license("fcos_acmix_resnet_nano.bccd", {})).startswith("research use only")
    assert parent_license(str(SHIPPED), cfg) == "mit", "the licence of the weights, not of the network"
    (tmp_path / "start.pth").touch()
    assert parent_license(str(tmp_path / "start.pth"), cfg) is None and parent_license(False, cfg) is None


def test_a_network_without_its_start_weights_has_the_same_parent() -> None:
    """A resumed run builds its network without them, so its pretrained_cfg is that of the default tag."""
    cfg = create_model("resnet18").pretrained_cfg
    assert cfg["tag"] != "fb_swsl_ig1b_ft_in1k"
    assert parent_name("fb_swsl_ig1b_ft_in1k", cfg) == "resnet18.fb_swsl_ig1b_ft_in1k"
    assert parent_license("fb_swsl_ig1b_ft_in1k", cfg) == "cc-by-nc-4.0", "not that of the default tag"


def test_the_parent_is_recorded_when_a_run_starts(runs: Path, tmp_path: Path) -> None:
    """Later, it may not be there any more, or the default tag may have changed."""
    start = write_weights(tmp_path / "start", record={**RECORD, "license": "cc-by-nc-4.0"})
    options = {"model__model": "acmix_resnet_pico", "model__pretrained": start, "trainer__limit_train_batches": 1}
    crash = callback_option(CrashAfterFirstEpoch)
    command = fit_arguments(
        runs / "images", tmp_path / "run", **options, trainer__max_epochs=2, trainer__callbacks=crash
    )
    assert main(command) == 1
    shutil.rmtree(start)
    record = read_config(export_run(tmp_path / "run", tmp_path / "weights"))["acmix_zoo"]
    assert (record["parent"], record["parent_license"]) == ("acmix_resnet_pico.shapes", "cc-by-nc-4.0")


def test_the_record_names_the_backend_of_acmix_layers() -> None:
    trainer = L.Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    found = run_environment(trainer, nn.Sequential(ACmix2d(8, 8)))
    assert found["backend"] in BACKENDS and found["instruction_set"] in INSTRUCTION_SETS
    assert "backend" not in run_environment(trainer, nn.Sequential(nn.Conv2d(8, 8, 3)))
