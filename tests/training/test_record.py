"""What a record says about the start of a run."""

import pytest

pytest.importorskip("lightning")


from acmix_zoo.training.record import parent_name
from acmix_zoo.weights import create_model


def test_the_record_names_the_weights_that_a_run_started_from() -> None:
    cfg = create_model("acmix_resnet_pico", pretrained=True, num_classes=3).pretrained_cfg
    assert parent_name(True, cfg) == "acmix_resnet_pico.fashion_mnist"  # not: True
    assert parent_name("runs/x/weights", cfg) == "runs/x/weights" and parent_name(False, cfg) is None
