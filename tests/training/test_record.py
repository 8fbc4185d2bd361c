"""The record of a run names its initial weights."""

import pytest

pytest.importorskip("lightning")

from pathlib import Path

from support.weight_folders import SHIPPED

from acmix_zoo.training.record import parent_name
from acmix_zoo.weights import create_model


def test_the_record_names_the_weights_that_a_run_started_from(tmp_path: Path) -> None:
    cfg = create_model("acmix_resnet_pico", pretrained=True, num_classes=3).pretrained_cfg
    assert parent_name(True, cfg) == "acmix_resnet_pico.fashion_mnist"  # not: True
    assert parent_name("runs/x/weights", cfg) == "runs/x/weights" and parent_name(False, cfg) is None
    assert parent_name(str(SHIPPED), {}) == "acmix_resnet_pico.fashion_mnist"
    assert parent_name(str(tmp_path / "start.pth"), {}) == "start.pth"
