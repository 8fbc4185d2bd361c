"""ACmix-ResNet: the bottleneck ResNet with every 3×3 convolution replaced by ACmix.

Source: ACmix, CVPR 2022, table 1, and its released code for ResNet-26/38/50. `acmix_resnet_pico` is our addition for
32-pixel images. The released constructor overwrites the shift kernels with Kaiming noise of standard deviation 0.06.
Here they stay shifts.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.argument_checks import Paths
from acmix_zoo.models.registry import IMAGENET, MEDIUM, SMALL, generate_default_cfgs, register_model
from acmix_zoo.models.resnet_trunk import PICO, ResNetTrunk, Site, create_resnet

__all__ = ["ACmixResNet"]


class ACmixResNet(ResNetTrunk):
    """ResNet of ACmix bottlenecks, with timm's model interface.

    Args:
        layers, planes: number of blocks and inner channels of each stage, see `ResNetTrunk`.
        heads, kernel_att, kernel_conv, paths: arguments of `ACmix2d`.
        trunk: the other arguments of `ResNetTrunk`: base_width, stem_width, small_input, output_stride, in_chans,
            num_classes, global_pool, drop_rate, drop_path_rate, zero_init_last.

    Shape: (B, in_chans, H, W) → (B, num_classes); any height and width.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        planes: tuple[int, ...] = (64, 128, 256, 512),
        *,
        heads: int = 4,
        kernel_att: int = 7,
        kernel_conv: int = 3,
        paths: Paths = "both",
        **trunk: Any,
    ) -> None:
        acmix: dict[str, Any] = {"heads": heads, "kernel_att": kernel_att, "kernel_conv": kernel_conv, "paths": paths}

        def middle(site: Site) -> nn.Module:
            return ACmix2d(site.width, site.width, stride=site.stride, dilation=site.dilation, **acmix)

        super().__init__(middle, layers=layers, planes=planes, **trunk)


_FIRST_AND_LAST = {"first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        **{f"acmix_resnet{depth}": {**IMAGENET, **_FIRST_AND_LAST} for depth in (26, 38, 50)},
        "acmix_resnet_nano": {**MEDIUM, "classifier": "fc", "first_conv": "conv1.0"},
        "acmix_resnet_pico": {**SMALL, "pool_size": (2, 2), "classifier": "fc", "first_conv": "conv1.0"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ACmixResNet:
    return create_resnet(ACmixResNet, variant, pretrained, defaults, kwargs)


@register_model
def acmix_resnet26(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-26: 10,487,816 parameters, 2.22 GMACs, 224-pixel images, 1000 classes. Published: 76.1 %."""
    return _create("acmix_resnet26", pretrained, {"layers": (1, 2, 4, 1)}, kwargs)


@register_model
def acmix_resnet38(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-38: 14,410,896 parameters, 2.86 GMACs, 224-pixel images, 1000 classes. Published: 77.4 %."""
    return _create("acmix_resnet38", pretrained, {"layers": (2, 3, 5, 2)}, kwargs)


@register_model
def acmix_resnet50(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-50: 18,333,976 parameters, 3.50 GMACs, 224-pixel images, 1000 classes. Published: 77.8 %."""
    return _create("acmix_resnet50", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def acmix_resnet_pico(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet for 32-pixel images: 653,054 parameters, 10.4 MMACs, three stages of two bottlenecks, 10 classes.

    As a segmentation encoder, it has depth 4; its feature maps have strides 2, 4, 8 and 16.
    """
    return _create("acmix_resnet_pico", pretrained, PICO, kwargs)


@register_model
def acmix_resnet_nano(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet for 64-pixel images: 2,629,950 parameters, 109 MMACs, 200 classes.

    Three stages of one, two and three bottlenecks. The late stages have most of the blocks, because a block costs twice
    as much at twice the resolution.
    """
    defaults = {"layers": (1, 2, 3), "planes": (56, 112, 224), "stem_width": 48, "small_input": True}
    return _create("acmix_resnet_nano", pretrained, defaults, kwargs)
