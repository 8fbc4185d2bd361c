"""Baselines of ACmix-ResNet on the same trunk: plain ResNet, SENet, CBAM, and convolution and attention in series.

Source of the gates: "Squeeze-and-Excitation Networks", CVPR 2018, and "CBAM: Convolutional Block Attention Module",
ECCV 2018. Both are timm's modules, with the reduction of 16 and in the place of these papers: behind the last batch
norm of each block. `series_resnet_pico` is our own control for ACmix: it has the same attention, but behind a
convolution instead of beside one. All four networks are for 32-pixel images; for ImageNet, timm has `resnet50`,
`seresnet50` and `resnet50` with `block_args={"attn_layer": "cbam"}`.
"""

from __future__ import annotations

from typing import Any

from timm.layers import get_attn
from torch import nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.models.registry import generate_default_cfgs, register_model
from acmix_zoo.models.resnet_trunk import PICO, PICO_CFG, ResNetTrunk, Site, create_resnet

__all__ = ["CBAMResNet", "PlainResNet", "SEResNet", "SeriesResNet"]


def conv3x3(site: Site) -> nn.Module:
    """Return the middle layer of a plain ResNet."""
    width, dilation = site.width, site.dilation
    return nn.Conv2d(width, width, 3, site.stride, padding=dilation, dilation=dilation, bias=False)


class PlainResNet(ResNetTrunk):
    """The bottleneck ResNet with 3×3 convolutions. The arguments are those of `ResNetTrunk`."""

    def __init__(self, **trunk: Any) -> None:
        super().__init__(conv3x3, **trunk)


class SEResNet(ResNetTrunk):
    """SENet: each block scales its output channels by what a small network makes of their means."""

    def __init__(self, **trunk: Any) -> None:
        super().__init__(conv3x3, get_attn("se"), **trunk)


class CBAMResNet(ResNetTrunk):
    """CBAM: each block scales its output channels, and then the positions, by their means and maxima."""

    def __init__(self, **trunk: Any) -> None:
        super().__init__(conv3x3, get_attn("cbam"), **trunk)


class SeriesResNet(ResNetTrunk):
    """Convolution and attention in series: a depthwise 3×3 convolution, batch norm, and the attention of ACmix.

    Args:
        heads, kernel_att: arguments of `ACmix2d`.
        trunk: arguments of `ResNetTrunk`.
    """

    def __init__(self, *, heads: int = 4, kernel_att: int = 7, **trunk: Any) -> None:
        def middle(site: Site) -> nn.Module:
            width, dilation = site.width, site.dilation
            conv = nn.Conv2d(width, width, 3, site.stride, dilation, dilation, groups=width, bias=False)
            attention = ACmix2d(width, width, heads=heads, kernel_att=kernel_att, dilation=dilation, paths="attention")
            return nn.Sequential(conv, nn.BatchNorm2d(width), attention)

        super().__init__(middle, **trunk)


default_cfgs = generate_default_cfgs(
    dict.fromkeys(("resnet_pico", "se_resnet_pico", "cbam_resnet_pico", "series_resnet_pico"), PICO_CFG)
)


@register_model
def resnet_pico(pretrained: bool = False, **kwargs: Any) -> PlainResNet:
    """ResNet for 32-pixel images: 872,474 parameters, 9.95 MMACs, three stages of two bottlenecks, 10 classes."""
    return create_resnet(PlainResNet, "resnet_pico", pretrained, PICO, kwargs)


@register_model
def se_resnet_pico(pretrained: bool = False, **kwargs: Any) -> SEResNet:
    """SE-ResNet for 32-pixel images: 960,394 parameters, 10 MMACs, three stages of two bottlenecks, 10 classes."""
    return create_resnet(SEResNet, "se_resnet_pico", pretrained, PICO, kwargs)


@register_model
def cbam_resnet_pico(pretrained: bool = False, **kwargs: Any) -> CBAMResNet:
    """CBAM-ResNet for 32-pixel images: 959,090 parameters, 10.1 MMACs, three stages of two bottlenecks, 10 classes."""
    return create_resnet(CBAMResNet, "cbam_resnet_pico", pretrained, PICO, kwargs)


@register_model
def series_resnet_pico(pretrained: bool = False, **kwargs: Any) -> SeriesResNet:
    """Convolution and attention in series: 621,034 parameters, 8.36 MMACs, 32-pixel images, three stages of
    two bottlenecks, 10 classes."""
    return create_resnet(SeriesResNet, "series_resnet_pico", pretrained, PICO, kwargs)
