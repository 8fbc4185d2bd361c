"""Parts of a `Detector` that replace torchvision's: boxes in float32, and images that are resized with antialiasing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.functional import interpolate
from torchvision.models.detection.anchor_utils import AnchorGenerator
from torchvision.models.detection.image_list import ImageList
from torchvision.models.detection.transform import GeneralizedRCNNTransform
from torchvision.ops import MultiScaleRoIAlign

_HALF = (torch.bfloat16, torch.float16)


def to_float32(module: nn.Module, inputs: Any, output: Any) -> Any:
    """Forward hook that returns the outputs of a head in float32 if they are in half precision.

    torchvision computes boxes in the dtype of the head, and bfloat16 has only 8 significant bits: above 512 pixels, it
    would round coordinates to multiples of 4. Besides, its non-maximum suppression has no kernel for bfloat16.
    """
    if isinstance(output, dict):
        return {name: to_float32(module, inputs, each) for name, each in output.items()}
    if isinstance(output, tuple | list):
        return [to_float32(module, inputs, each) for each in output]
    return _at_least_float32(output)


def _at_least_float32(x: Tensor) -> Tensor:
    return x.float() if x.dtype in _HALF else x


class Float32Anchors(AnchorGenerator):  # type: ignore[misc]  # torchvision has no types
    """Anchors that are in float32 where torchvision's are in half precision, like the feature maps."""

    def forward(self, image_list: ImageList, feature_maps: list[Tensor]) -> list[Tensor]:
        if feature_maps[0].dtype in _HALF:  # only their shapes, dtype and device are used
            feature_maps = [torch.empty_like(each, dtype=torch.float32) for each in feature_maps]
        return super().forward(image_list, feature_maps)  # type: ignore[no-any-return]


class Float32Pool(MultiScaleRoIAlign):  # type: ignore[misc]  # torchvision has no types
    """Features of boxes, computed in float32 like the boxes, in the dtype of the feature maps."""

    def forward(self, x: dict[str, Tensor], boxes: list[Tensor], image_shapes: list[tuple[int, int]]) -> Tensor:
        maps = {name: _at_least_float32(each) for name, each in x.items()}
        pooled: Tensor = super().forward(maps, [_at_least_float32(each) for each in boxes], image_shapes)
        return pooled.to(next(iter(x.values())).dtype)


class ImageScaling(GeneralizedRCNNTransform):  # type: ignore[misc]  # torchvision has no types
    """Resize and pad images. In training, images are not resized. Otherwise, resizing is antialiased.

    Args:
        image_size: length of the shorter side, in pixels.
        max_size: maximum length of the longer side.
    """

    def __init__(self, image_size: int, max_size: int) -> None:
        super().__init__(image_size, max_size, [], [])

    def normalize(self, image: Tensor) -> Tensor:
        return image  # the data module has normalised it

    def resize(self, image: Tensor, target: dict[str, Tensor] | None = None) -> tuple[Tensor, dict[str, Tensor] | None]:
        if self.training:
            return image, target
        height, width = image.shape[-2:]
        scale = min(self.min_size[0] / min(height, width), self.max_size / max(height, width))
        size = (max(1, round(height * scale)), max(1, round(width * scale)))
        resized = interpolate(_at_least_float32(image)[None], size, mode="bilinear", antialias=True)[0]
        return resized.to(image.dtype), target  # on a CPU, there is no antialiased kernel for bfloat16
