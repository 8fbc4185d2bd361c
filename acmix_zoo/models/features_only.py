"""The wrappers behind `features_only=True`, which turn a network into a backbone that returns feature maps."""

from __future__ import annotations

from typing import Any

from timm.models._features import FeatureGetterNet
from torch import Tensor


class MapList(FeatureGetterNet):
    """A list of feature maps from `forward_intermediates`. Unlike timm's class, it supports gradient checkpointing."""

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.model.set_grad_checkpointing(enable)  # type: ignore[operator]


class MapDict(MapList):
    """The same feature maps as a dict. As in timm's FeatureDictNet, the keys are the stage indices as strings."""

    def forward(self, x: Tensor) -> dict[str, Tensor]:
        maps = super().forward(x)  # type: ignore[no-untyped-call]  # in the order of the stages
        return dict(zip(map(str, sorted(self.feature_info.out_indices)), maps, strict=True))


def feature_class(requested: Any, default: Any = None) -> Any:
    """Return the class for timm's `feature_cls=`.

    timm's FeatureListNet and FeatureDictNet can only rebuild stages that are sequences of modules. Networks with other
    stages default to "getter", and return the same result from `forward_intermediates`.
    """
    name = default if requested is None else requested
    if default == "getter" and name in ("list", "dict"):
        return MapDict if name == "dict" else MapList
    return MapList if name == "getter" else name
