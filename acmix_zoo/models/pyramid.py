"""`PyramidBackbone`: a feature pyramid on any backbone, as the detectors of torchvision expect it."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import timm
import torch
from torch import Tensor, nn
from torch.nn.functional import max_pool2d, relu
from torchvision.ops.feature_pyramid_network import ExtraFPNBlock, FeaturePyramidNetwork


class PyramidBackbone(nn.Module):
    """Feature maps of a backbone, merged by a feature pyramid network.

    Source: "Feature Pyramid Networks for Object Detection", CVPR 2017.

    Args:
        architecture: name of the backbone, a network of this project or of timm.
        model_kwargs: arguments of the backbone.
        strides: strides of the feature maps to return, each twice the one before. Feature maps with larger strides than
            those of the backbone are computed from its last one.
        channels: channels of all returned feature maps.
        has_extra_convs: compute the additional levels with strided 3×3 convolutions, as RetinaNet and FCOS do, instead
            of subsampling, as R-CNN does.

    Attributes:
        body: the backbone.
        out_channels: channels of all feature maps.
        body_levels: the names of the feature maps that come from the backbone.

    Shape: (B, 3, H, W) → {"0": (B, channels, H/strides[0], W/strides[0]), "1": …}

    Raises:
        ValueError: `strides` are not successive powers of two, or the backbone has no feature map with the smallest.
    """

    def __init__(
        self,
        architecture: str,
        model_kwargs: Mapping[str, Any],
        strides: Sequence[int],
        channels: int,
        has_extra_convs: bool,
    ) -> None:
        super().__init__()
        if not strides or any(b != 2 * a for a, b in pairwise(strides)):
            raise ValueError(f"strides={list(strides)}. Expected each to be twice the one before, such as [8, 16, 32]")
        indices = _map_indices(architecture, model_kwargs, strides)
        self.body = timm.create_model(architecture, features_only=True, out_indices=indices, **model_kwargs)
        self.is_channels_last = getattr(self.body, "output_fmt", "NCHW") == "NHWC"
        self.out_channels = channels
        self.body_levels = [str(level) for level in range(len(indices))]
        extra_levels = len(strides) - len(indices)
        info: Any = self.body.feature_info
        self.fpn = FeaturePyramidNetwork(
            info.channels(),
            channels,
            _ExtraLevels(channels, extra_levels, has_extra_convs) if extra_levels else None,
        )

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = self.body(x)
        if self.is_channels_last:
            maps = [each.permute(0, 3, 1, 2) for each in maps]
        return self.fpn(OrderedDict(zip(self.body_levels, maps, strict=True)))  # type: ignore[no-any-return]


def _map_indices(architecture: str, model_kwargs: Mapping[str, Any], strides: Sequence[int]) -> tuple[int, ...]:
    """Return the index of the backbone's last feature map of each stride that it has."""
    with torch.device("meta"):  # no memory or time is needed for the weights
        info: Any = timm.create_model(architecture, features_only=True, **model_kwargs).feature_info
    available = dict(zip(info.reduction(), info.out_indices, strict=True))
    if strides[0] not in available:
        raise ValueError(
            f"{architecture} has feature maps of strides {', '.join(map(str, available))}, but none of stride "
            f"{strides[0]}. Start the strides with one of them, such as {list(available)[-3:]}"
        )
    return tuple(available[stride] for stride in strides if stride in available)


class _ExtraLevels(ExtraFPNBlock):  # type: ignore[misc]  # torchvision has no types
    """Add feature maps after the last one, each of half the size of the one before.

    torchvision's LastLevelMaxPool adds one and its LastLevelP6P7 two. Backbones with smaller strides need more.
    """

    def __init__(self, channels: int, count: int, has_convs: bool) -> None:
        super().__init__()
        self.count = count
        self.convs = nn.ModuleList(nn.Conv2d(channels, channels, 3, 2, 1) for _ in range(count * has_convs))
        for conv in self.convs:
            nn.init.kaiming_uniform_(conv.weight, a=1)  # type: ignore[arg-type]
            nn.init.zeros_(conv.bias)  # type: ignore[arg-type]

    def forward(self, results: list[Tensor], x: list[Tensor], names: list[str]) -> tuple[list[Tensor], list[str]]:
        for i in range(self.count):
            last = results[-1]
            if self.convs:
                results.append(self.convs[i](relu(last) if i else last))
            else:
                results.append(max_pool2d(last, 1, stride=2))
            names.append(str(len(names)))
        return results, names
