"""torchgeo's tasks, which build timm networks by name, with various numbers of bands."""

from __future__ import annotations

import pytest
import torch

import acmix_zoo  # noqa: F401  registers the networks

torchgeo = pytest.importorskip("torchgeo.trainers")
pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
SMALL = ["acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico"]


@pytest.mark.parametrize("name", SMALL)
def test_classification(name: str) -> None:
    task = torchgeo.ClassificationTask(model=name, in_channels=4, task="multiclass", num_classes=5)
    out = task(torch.randn(2, 4, 32, 32))
    assert out.shape == (2, 5)
    out.square().mean().backward()
    assert [key for key, p in task.model.named_parameters() if p.grad is None] == []


def test_segmentation() -> None:
    task = torchgeo.SemanticSegmentationTask(
        model="unet", backbone="tu-acmix_resnet26", in_channels=4, task="multiclass", num_classes=5
    )
    assert task.eval()(torch.randn(1, 4, 64, 64)).shape == (1, 5, 64, 64)
