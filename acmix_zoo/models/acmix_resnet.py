"""ACmix-ResNet: the bottleneck ResNet with every 3×3 convolution replaced by ACmix.

Source: ACmix, CVPR 2022, table 1, and its released code for ResNet-26/38/50; `acmix_resnet_pico` is ours, for 32-pixel
images. The released constructor overwrites the shift kernels with Kaiming noise (std 0.06); here they stay shifts.
"""

from __future__ import annotations

from typing import Any

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from timm.models import checkpoint_seq
from torch import Tensor, nn

from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.layers.deploy import fold
from acmix_zoo.models.feature_maps import check_output_fmt, to_output_fmt
from acmix_zoo.models.map_head import MapHead
from acmix_zoo.models.registry import (
    IMAGENET,
    SMALL,
    build,
    feature_take_indices,
    generate_default_cfgs,
    register_model,
)
from acmix_zoo.models.stem import small_stem

__all__ = ["ACmixResNet"]


class Bottleneck(nn.Module):
    """1×1 → ACmix (with the stride) → 1×1 to four times the planes, each with batch norm, around an identity."""

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


class ACmixResNet(MapHead):
    """ResNet of ACmix bottlenecks, with timm's model interface.

    Args:
        layers: blocks of each stage.
        planes: planes of each stage; its maps have four times as many channels.
        base_width: inner width of a bottleneck per 64 planes.
        stem_width: channels of the stem.
        small_input: a stem of two 3×3 convolutions for 32-pixel images in place of the 7×7 one; like it, and with the
            same pooling behind it, it hands a quarter of the image's side to the first stage.
        heads, kernel_att, kernel_conv, paths: of the ACmix layers.
        output_stride: 8, 16 or 32, the ratio of the image's side to that of the last map. Stages that would exceed it
            keep the size of their maps and dilate their ACmix layers instead, as timm's ResNet does with its
            convolutions. The parameters are the same.
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
            raise ValueError(f"ACmixResNet: unknown output_stride={output_stride!r}; expected 8, 16 or 32")
        self.in_chans = in_chans
        large = nn.Conv2d(in_chans, stem_width, 7, 2, 3, bias=False)
        self.conv1: nn.Module = small_stem(in_chans, stem_width) if small_input else large
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool: nn.Module = nn.MaxPool2d(3, 2, 1)
        self.feature_info = [{"num_chs": stem_width, "reduction": 2, "module": "act1"}]

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
        """Kaiming for the plain convolutions. ACmix layers keep their own start; a block starts as its identity."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_init_last:
                nn.init.zeros_(module.bn3.weight)

    @property
    def stages(self) -> list[nn.Sequential]:
        """layer1, layer2, …"""
        return [getattr(self, str(info["module"])) for info in self.feature_info[1:]]

    def no_weight_decay(self) -> set[str]:
        return {name for name, _ in self.named_parameters() if name.endswith(("alpha", "beta"))}

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def deploy(self) -> ACmixResNet:
        """Fold batch norms, kernels, alpha and beta for inference, in place; see `acmix_zoo.layers.deploy`."""
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

    def _stage(self, stage: nn.Sequential, x: Tensor) -> Tensor:
        if self.grad_checkpointing:
            return checkpoint_seq(stage, x)  # type: ignore[no-any-return]
        return stage(x)  # type: ignore[no-any-return]

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of the stem (index 0) and the stages, (B, C, H/reduction, W/reduction), as in timm.

        With `output_fmt="NHWC"`, the maps are (B, H/reduction, W/reduction, C), but the final features are not.
        """
        check_output_fmt("ACmixResNet", output_fmt)
        take, last = feature_take_indices(len(self.feature_info), indices)
        check_dtype("ACmixResNet", x, self.conv1)
        x = self.act1(self.bn1(self.conv1(x)))
        maps = [to_output_fmt(x, output_fmt)] if 0 in take else []
        x = self.maxpool(x)
        for i, stage in enumerate(self.stages[:last] if stop_early else self.stages, 1):
            x = self._stage(stage, x)
            if i in take:
                maps.append(to_output_fmt(x, output_fmt))
        return maps if intermediates_only else (x, maps)

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last index, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        pruned = last < len(self.feature_info) - 1
        for stage in self.feature_info[last + 1 :]:
            setattr(self, str(stage["module"]), nn.Sequential())
        if last == 0:
            self.maxpool = nn.Identity()  # the stem's map is the last feature map
        if pruned:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])  # type: ignore[call-overload]
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        check_dtype("ACmixResNet", x, self.conv1)
        x = self.maxpool(self.act1(self.bn1(self.conv1(x))))
        for stage in self.stages:
            x = self._stage(stage, x)
        return x

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


_ENDS = {"first_conv": "conv1", "classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        **{f"acmix_resnet{depth}": {**IMAGENET, **_ENDS} for depth in (26, 38, 50)},
        "acmix_resnet_pico": {**SMALL, "pool_size": (2, 2), "classifier": "fc", "first_conv": "conv1.0"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ACmixResNet:
    stages = len(kwargs.get("layers", defaults["layers"]))
    feature_cfg = {"out_indices": tuple(range(stages + 1))}
    return build(ACmixResNet, variant, pretrained, feature_cfg, **{**defaults, **kwargs})  # type: ignore[return-value]


@register_model
def acmix_resnet26(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-26: 10,487,816 parameters, 2.22 GMACs, 224-pixel images, 1000 classes. As published, 76.1 %."""
    return _create("acmix_resnet26", pretrained, {"layers": (1, 2, 4, 1)}, kwargs)


@register_model
def acmix_resnet38(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-38: 14,410,896 parameters, 2.86 GMACs, 224-pixel images, 1000 classes. As published, 77.4 %."""
    return _create("acmix_resnet38", pretrained, {"layers": (2, 3, 5, 2)}, kwargs)


@register_model
def acmix_resnet50(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet-50: 18,333,976 parameters, 3.50 GMACs, 224-pixel images, 1000 classes. As published, 77.8 %."""
    return _create("acmix_resnet50", pretrained, {"layers": (3, 4, 6, 3)}, kwargs)


@register_model
def acmix_resnet_pico(pretrained: bool = False, **kwargs: Any) -> ACmixResNet:
    """ACmix-ResNet for 32-pixel images: 653,054 parameters, 10.4 MMACs, three stages of two bottlenecks, 10 classes.
    As an encoder it halves the image four times: depth 4, maps of 1/2, 1/4, 1/8 and 1/16."""
    defaults = {"layers": (2, 2, 2), "planes": (32, 64, 128), "stem_width": 32, "small_input": True}
    return _create("acmix_resnet_pico", pretrained, defaults, kwargs)
