"""torchvision's detection networks with our networks as backbones through `features_only`."""

from __future__ import annotations

from collections import OrderedDict

import pytest
import torch
from support.small_networks import FAMILIES
from torch import Tensor, nn
from torchvision.models.detection import FasterRCNN, MaskRCNN, RetinaNet
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.ops import FeaturePyramidNetwork

from acmix_zoo import create_model

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]


class Pyramid(nn.Module):
    """The last three maps of a network, each with 32 channels."""

    out_channels = 32

    def __init__(self, name: str) -> None:
        super().__init__()
        self.body = create_model(
            name, features_only=True, feature_cls="dict", out_indices=(-3, -2, -1), **FAMILIES[name]
        )
        self.fpn = FeaturePyramidNetwork(self.body.feature_info.channels(), self.out_channels)

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x).values()
        return self.fpn(OrderedDict(zip("012", maps, strict=True)))  # type: ignore[no-any-return]


@pytest.mark.parametrize("detector", [FasterRCNN, MaskRCNN, RetinaNet])
@pytest.mark.parametrize("name", FAMILIES)
def test_detectors_train_and_predict(name: str, detector: type[nn.Module]) -> None:
    anchors = AnchorGenerator(((16,), (32,), (64,)), ((0.5, 1.0, 2.0),) * 3)
    key = "anchor_generator" if detector is RetinaNet else "rpn_anchor_generator"
    network = detector(Pyramid(name), num_classes=3, min_size=96, max_size=128, **{key: anchors}).train()
    target = {"boxes": torch.tensor([[8.0, 8.0, 60.0, 50.0]]), "labels": torch.tensor([1])}
    target["masks"] = torch.ones(1, 96, 128, dtype=torch.uint8)
    losses = network([torch.rand(3, 96, 128)], [target])
    sum(losses.values()).backward()
    assert all(loss.isfinite() for loss in losses.values())
    assert [k for k, p in network.backbone.named_parameters() if p.grad is None] == []
    with torch.no_grad():
        (found,) = network.eval()([torch.rand(3, 90, 70)])
    assert found["boxes"].shape[1] == 4
