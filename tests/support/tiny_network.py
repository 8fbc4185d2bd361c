"""A network that is small enough to be exported in a moment, with timm's interface."""

from __future__ import annotations

from typing import Any

import torch
from timm.models import PretrainedCfg
from torch import Tensor, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval


class TinyNetwork(nn.Module):
    """A convolution with batch norm, and a classifier with three classes; `deploy` folds the norm."""

    def __init__(self, **cfg: Any) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.num_classes = 3
        self.conv, self.norm = nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8)
        nn.init.normal_(self.norm.running_mean, std=0.2)  # type: ignore[arg-type]
        nn.init.uniform_(self.norm.running_var, 0.5, 2)  # type: ignore[arg-type]
        self.fc = nn.Linear(8, 3)
        known = {
            "architecture": "tiny", "tag": "colours", "input_size": (3, 16, 16), "crop_pct": 1.0, "mean": (0.5,) * 3,
            "std": (0.25,) * 3, "label_names": ["a", "b", "c"], "license": "mit",
        }  # fmt: skip
        self.pretrained_cfg = PretrainedCfg(**{**known, **cfg}).to_dict()

    def deploy(self) -> TinyNetwork:
        self.conv = fuse_conv_bn_eval(self.conv, self.norm)
        self.norm = nn.Identity()
        return self

    def forward(self, x: Tensor) -> Tensor:
        return self.fc(self.norm(self.conv(x)).relu().mean((2, 3)))  # type: ignore[no-any-return]
