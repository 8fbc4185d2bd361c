"""AA-ResNet and BoTNet: ResNets with global attention and learned relative positions.

Source of AA-ResNet: "Attention Augmented Convolutional Networks", ICCV 2019. What was read: notes that quote its
sections 3.1 and 3.2, which define the layer, and public implementations that quote the minimum of 20 key channels per
head. Taken as given: κ = 2υ = 0.2, 8 heads, attention in the last three stages, pooled in the first of these. The
authors released no network. Our parameters round to the published ones, and our MACs differ by 1.4 %.

Source of BoTNet: "Bottleneck Transformers for Visual Recognition", CVPR 2021. timm has its attention for one input
size, and ours is tested against it. The pico networks are our additions for 32-pixel images.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import to_2tuple
from torch import Tensor, nn

from acmix_zoo.layers import AugmentedConv2d, RelativeAttention
from acmix_zoo.models.plain_resnet import conv3x3
from acmix_zoo.models.registry import generate_default_cfgs, register_model
from acmix_zoo.models.resnet_trunk import IMAGENET_CFG, PICO, PICO_CFG, ResNetTrunk, Site, create_resnet

__all__ = ["AAResNet", "BoTResNet", "checkpoint_filter_fn"]  # the last is looked up in the module of a network

Size = int | tuple[int, int]


def map_side(img_size: Size, stage: int) -> int:
    """Return the longer side of the feature maps of a stage, counted from 1, for images of `img_size` pixels."""
    longest, reduction = max(to_2tuple(img_size)), 2 ** (stage + 1)
    return int(-(-longest // reduction))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Give the tables of relative positions the size of those of a network for a different image size.

    Larger tables repeat the outermost entries, which `RelativeAttention` uses beyond its reach in any case. The outputs
    therefore stay the same, except for smaller tables and images that are larger than these.
    """
    own = model.state_dict()
    return {
        key: _with_length(value, len(own[key])) if key.endswith((".rows", ".columns")) and key in own else value
        for key, value in state_dict.items()
    }


def _with_length(table: Tensor, length: int) -> Tensor:
    """Repeat or drop the outermost entries on both sides: (2·r+1, D) → (length, D)."""
    distances = torch.arange(length, device=table.device) - length // 2  # (length,)
    return table[(distances + len(table) // 2).clamp(0, len(table) - 1)]  # (length, D)


class AAResNet(ResNetTrunk):
    """ResNet with attention-augmented convolutions, with timm's model interface.

    Args:
        img_size: side length of the images that the tables of relative positions are made for, or (height, width), of
            which the longer counts. Images of any size work: larger distances share the outermost entries, see
            `RelativeAttention`. Weights of classifiers load with any img_size and output_stride. The tables do not
            depend on output_stride. To cover the larger feature maps of output_stride=16, double img_size and train.
        heads, key_ratio, value_ratio: see `AugmentedConv2d`.
        first_stage: the first stage with attention, counted from 1. The stages before it have plain convolutions.
        pool_first: whether the attention of that stage, which is the most expensive one, runs at half the resolution.
        trunk: arguments of `ResNetTrunk`.
    """

    NO_WEIGHT_DECAY = r"\.(rows|columns)$"

    def __init__(
        self,
        *,
        img_size: Size = 224,
        heads: int = 8,
        key_ratio: float = 0.2,
        value_ratio: float = 0.1,
        first_stage: int = 2,
        pool_first: bool = True,
        **trunk: Any,
    ) -> None:
        def middle(site: Site) -> nn.Module:
            if site.stage < first_stage:
                return conv3x3(site)
            pool = pool_first and site.stage == first_stage
            reach = map_side(img_size, site.stage + pool) - 1
            return AugmentedConv2d(
                site.width, site.width, site.stride, site.dilation,
                heads=heads, key_ratio=key_ratio, value_ratio=value_ratio, reach=reach, pool=pool,
            )  # fmt: skip

        super().__init__(middle, **trunk)


class BoTResNet(ResNetTrunk):
    """BoTNet: the last stage has global attention instead of convolutions, with timm's model interface.

    Args:
        img_size: as in `AAResNet`, except that the tables of the first block depend on output_stride.
        heads: number of attention heads.
        trunk: arguments of `ResNetTrunk`.
    """

    NO_WEIGHT_DECAY = r"\.(rows|columns)$"

    def __init__(self, *, img_size: Size = 224, heads: int = 4, **trunk: Any) -> None:
        def middle(site: Site) -> nn.Module:
            if site.stage < last:
                return conv3x3(site)
            reach = site.stride * map_side(img_size, site.stage) - 1
            attention = RelativeAttention(site.width, site.width, site.width, heads=heads, reach=reach)
            pool = nn.AvgPool2d(2, 2, ceil_mode=True) if site.stride == 2 else nn.Identity()
            return nn.Sequential(attention, pool)

        last = len(trunk.get("layers", (3, 4, 6, 3)))
        super().__init__(middle, **trunk)


default_cfgs = generate_default_cfgs(
    {"aa_resnet50": IMAGENET_CFG, "aa_resnet_pico": PICO_CFG, "bot_resnet_pico": PICO_CFG}
)


@register_model
def aa_resnet50(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet-50: 25,809,392 parameters, 4.21 GMACs, 224-pixel images, 1000 classes. Published: 77.7 %."""
    return create_resnet(AAResNet, "aa_resnet50", pretrained, {"layers": (3, 4, 6, 3)}, kwargs, checkpoint_filter_fn)


@register_model
def aa_resnet_pico(pretrained: bool = False, **kwargs: Any) -> AAResNet:
    """AA-ResNet for 32-pixel images: 862,826 parameters, 11.3 MMACs, three stages of two bottlenecks, 10 classes.

    All stages have attention, with κ = υ = 0.25, because a tenth of so few channels would leave one for each head.
    """
    own = {"img_size": 32, "heads": 4, "key_ratio": 0.25, "value_ratio": 0.25, "first_stage": 1, "pool_first": False}
    return create_resnet(AAResNet, "aa_resnet_pico", pretrained, {**PICO, **own}, kwargs, checkpoint_filter_fn)


@register_model
def bot_resnet_pico(pretrained: bool = False, **kwargs: Any) -> BoTResNet:
    """BoTNet for 32-pixel images: 676,506 parameters, 9.84 MMACs, three stages of two bottlenecks, 10 classes."""
    return create_resnet(
        BoTResNet, "bot_resnet_pico", pretrained, {**PICO, "img_size": 32}, kwargs, checkpoint_filter_fn
    )
