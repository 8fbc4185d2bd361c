"""torchvision's detection networks with our networks as backbones, see `acmix_zoo.models.detector`."""

from __future__ import annotations

from typing import get_args

import pytest
import torch
from support.small_networks import FAMILIES

from acmix_zoo.models.detector import Detector, DetectorName

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


@pytest.mark.parametrize("detector", get_args(DetectorName))
@pytest.mark.parametrize("name", FAMILIES)
def test_detectors_train_and_predict(name: str, detector: DetectorName) -> None:
    network = Detector(
        name, 2, FAMILIES[name], detector=detector, strides=(8, 16, 32), channels=64, image_size=96, max_size=128
    ).train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 96, 128, dtype=torch.uint8)
    losses = network([torch.rand(3, 96, 128)], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [k for k, p in network.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        (found,) = network.eval()([torch.rand(3, 90, 70)])
    assert found["boxes"].shape[1] == 4
