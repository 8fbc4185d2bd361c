"""ACmix-ResNet: the bottleneck ResNet with every 3×3 convolution replaced by ACmix.

Source: ACmix, CVPR 2022, table 1, and its released code for ResNet-26/38/50. `acmix_resnet_pico` is our addition for
32-pixel images. The released constructor overwrites the shift kernels with Kaiming noise of standard deviation 0.06.
Here they stay shifts.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.layers.deploy import fold
from acmix_zoo.models.backbone import MapBackbone
from acmix_zoo.models.registry import IMAGENET, SMALL, build, generate_default_cfgs, register_model
from acmix_zoo.models.stem import small_stem

__all__ = ["ACmixResNet"]


class Bottleneck(nn.Module):
    """A residual block: 1×1, ACmix with the stride, and 1×1 to four times the planes, each with batch norm."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, width: int, stride: int, drop_path: float, **acmix: Any) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = ACmix2d(width, width, stride=stride, **acmix)
        self.bn2 = nn.BatchNorm2d(width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if stride != 1 or inputs != outputs:
            self.downsample = nn.Sequential(nn.Conv2d(inputs, outputs, 1, stride, bias=False), nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.drop_path(self.bn3(self.conv3(out)))
        return self.act3(out + self.downsample(x))  # type: ignore[no-any-return]


class ACmixResNet(MapBackbone):
    """ResNet of ACmix bottlenecks, with timm's model interface.

    Args:
        layers: number of blocks in each stage.
        planes: inner channels of each stage. Its feature maps have four times as many.
        base_width: inner width of a bottleneck per 64 planes.
        stem_width: channels of the stem.
        small_input: use a stem of two 3×3 convolutions for 32-pixel images instead of one 7×7 convolution. Both have
            stride 2 in total and are followed by the same pooling.
        heads, kernel_att, kernel_conv, paths: arguments of `ACmix2d`.
        output_stride: side length of the image divided by that of the last feature map: 8, 16 or 32. Stages that would
            exceed it keep the resolution and dilate their ACmix layers instead, like the convolutions of timm's ResNet.
            The parameters are the same.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate, zero_init_last: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes); any height and width.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        planes: tuple[int, ...] = (64, 128, 256, 512),
        *,
        base_width: int = 64,
        stem_width: int = 64,
        small_input: bool = False,
        heads: int = 4,
        kernel_att: int = 7,
        kernel_conv: int = 3,
        paths: Paths = "both",
        output_stride: int = 32,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        zero_init_last: bool = True,
    ) -> None:
        super().__init__()
        if output_stride not in (8, 16, 32):
            raise ValueError(f"ACmixResNet: unknown output_stride={output_stride!r}. Expected 8, 16 or 32")
        self.in_chans = in_chans
        conv7x7 = nn.Conv2d(in_chans, stem_width, 7, 2, 3, bias=False)
        self.conv1: nn.Module = small_stem(in_chans, stem_width) if small_input else conv7x7
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": stem_width, "reduction": 2, "module": "act1"}]

        acmix: dict[str, Any] = {"heads": heads, "kernel_att": kernel_att, "kernel_conv": kernel_conv, "paths": paths}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)  # [stage][block]
        inputs, reduction, dilation = stem_width, 4, 1
        for i, (depth, plane) in enumerate(zip(layers, planes, strict=True)):
            blocks, before, down = [], dilation, 2 if i else 1
            if reduction * down > output_stride:
                down, dilation = 1, dilation * down
            reduction *= down
            for j in range(depth):
                # The first block reads the previous stage's output, so it keeps that stage's dilation.
                spacing = {"stride": down, "dilation": before} if j == 0 else {"stride": 1, "dilation": dilation}
                width = plane * base_width // 64
                blocks.append(Bottleneck(inputs, plane, width, drop_path=drop_path[i][j], **spacing, **acmix))
                inputs = plane * Bottleneck.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": inputs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.num_features = inputs
        self.make_head(num_classes, global_pool, drop_rate)
        self.init_weights(zero_init_last)

    @torch.no_grad()
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise plain convolutions as in ResNet, and blocks as identities. ACmix layers keep their values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_init_last:
                nn.init.zeros_(module.bn3.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def deploy(self) -> ACmixResNet:
        """Fold batch norms, kernels, alpha and beta for inference, in place. See `acmix_zoo.layers.deploy`."""
        if isinstance(self.conv1, nn.Sequential):
            fold(self.conv1, "0", "1")
            fold(self, "conv1.3", "bn1")
        else:
            fold(self, "conv1", "bn1")
        for block in self.modules():
            if isinstance(block, Bottleneck):
                for i in (1, 2, 3):
                    fold(block, f"conv{i}", f"bn{i}")
                if isinstance(block.downsample, nn.Sequential):
                    fold(block.downsample, "0", "1")
        return self

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """Run the stem (i = 0, as in timm), or `layer{i}`, with the pooling before `layer1`."""
        if i == 0:
            check_dtype("ACmixResNet", x, self.conv1)
            return self.act1(self.bn1(self.conv1(x)))  # type: ignore[no-any-return]
        return self.run_blocks(self.get_submodule(f"layer{i}"), self.maxpool(x) if i == 1 else x)

    def drop_stage(self, i: int) -> None:
        delattr(self, f"layer{i}")


_FIRST_AND_LAST = {"first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        **{f"acmix_resnet{depth}": {**IMAGENET, **_FIRST_AND_LAST} for depth in (26, 38, 50)},
        "acmix_resnet_nano": {
            **SMALL,
            "num_classes": 200,
            "input_size": (3, 64, 64),
            "classifier": "fc",
            "first_conv": "conv1.0",
        },
        "acmix_resnet_pico": {**SMALL, "pool_size": (2, 2), "classifier": "fc", "first_conv": "conv1.0"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ACmixResNet:
    stages = len(kwargs.get("layers", defaults["layers"]))
    feature_cfg = {"out_indices": tuple(range(stages + 1))}
    return build(ACmixResNet, variant, pretrained, feature_cfg, **{**defaults, **kwargs})  # type: ignore[return-value]


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
    defaults = {"layers": (2, 2, 2), "planes": (32, 64, 128), "stem_width": 32, "small_input": True}
    return _create("acmix_resnet_pico", pretrained, defaults, kwargs)


@register_model
def acmix_resnet_nano(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet for 64-pixel images: 2,629,950 parameters, 109 MMACs, 200 classes.

    Three stages of one, two and three bottlenecks. The late stages have most of the blocks, because a block costs twice
    as much at twice the resolution.
    """
    defaults = {"layers": (1, 2, 3), "planes": (56, 112, 224), "stem_width": 48, "small_input": True}
    return _create("acmix_resnet_nano", pretrained, defaults, kwargs)
