"""The bottleneck ResNet that ACmix-ResNet shares with plain, attention-augmented and other ResNets.

They differ only in each block's middle layer (a 3×3 convolution in a plain ResNet) and in an optional gate at its end.
A network passes functions that build these layers.

Source: "Deep Residual Learning for Image Recognition", CVPR 2016, with the stride in the middle layer, as in timm.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import check_dtype
from acmix_zoo.layers.deploy import check_eval_mode, fold
from acmix_zoo.models.backbone import MapBackbone, per_stage
from acmix_zoo.models.registry import IMAGENET, SMALL, build
from acmix_zoo.models.stem import small_stem

_Network = TypeVar("_Network", bound="ResNetTrunk")

# timm's configuration of networks for 224-pixel and for 32-pixel images, and the arguments of the latter.
IMAGENET_CFG: dict[str, Any] = {**IMAGENET, "first_conv": "conv1", "classifier": "fc"}
PICO_CFG: dict[str, Any] = {**SMALL, "pool_size": (2, 2), "first_conv": "conv1.0", "classifier": "fc"}
PICO: dict[str, Any] = {"layers": (2, 2, 2), "planes": (32, 64, 128), "stem_width": 32, "small_input": True}


class Site(NamedTuple):
    """The place of a middle layer in the network.

    Attributes:
        stage: number of the stage, from 1.
        width: input and output channels.
        stride: stride of the layer. The output has ceil(size / stride) pixels per side.
        dilation: dilation of the layer, 1 unless the network has an `output_stride` below 32.
    """

    stage: int
    width: int
    stride: int
    dilation: int


MiddleLayer = Callable[[Site], nn.Module]
"""Builds a layer (B, width, H, W) → (B, width, ceil(H/stride), ceil(W/stride))."""

Gate = Callable[[int], nn.Module]
"""Builds a layer (B, channels, H, W) → the same, for a number of channels."""


class Bottleneck(nn.Module):
    """A residual block: 1×1, the middle layer, and 1×1 to four times the planes, each with batch norm, and a gate."""

    expansion = 4

    def __init__(self, inputs: int, planes: int, site: Site, middle: MiddleLayer, gate: Gate, drop_path: float) -> None:
        super().__init__()
        outputs = planes * self.expansion
        self.conv1 = nn.Conv2d(inputs, site.width, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(site.width)
        self.act1 = nn.ReLU(inplace=True)
        self.conv2 = middle(site)
        self.bn2 = nn.BatchNorm2d(site.width)
        self.act2 = nn.ReLU(inplace=True)
        self.conv3 = nn.Conv2d(site.width, outputs, 1, bias=False)
        self.bn3 = nn.BatchNorm2d(outputs)
        self.gate = gate(outputs)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()
        self.act3 = nn.ReLU(inplace=True)
        self.downsample: nn.Module = nn.Identity()
        if site.stride != 1 or inputs != outputs:
            shortcut = nn.Conv2d(inputs, outputs, 1, site.stride, bias=False)
            self.downsample = nn.Sequential(shortcut, nn.BatchNorm2d(outputs))

    def forward(self, x: Tensor) -> Tensor:
        out = self.act1(self.bn1(self.conv1(x)))
        out = self.act2(self.bn2(self.conv2(out)))
        out = self.drop_path(self.gate(self.bn3(self.conv3(out))))
        return self.act3(out + self.downsample(x))  # type: ignore[no-any-return]


class ResNetTrunk(MapBackbone):
    """A bottleneck ResNet with timm's model interface, whose middle layers and gates a subclass chooses.

    Args:
        middle: builds the middle layer of a block.
        gate: builds the gate of a block. There is none by default.
        layers: number of blocks in each stage.
        planes: inner channels of each stage. Its feature maps have four times as many.
        base_width: inner width of a bottleneck per 64 planes.
        stem_width: channels of the stem.
        small_input: use a stem of two 3×3 convolutions for 32-pixel images instead of one 7×7 convolution. Both have
            stride 2 in total and are followed by the same pooling.
        output_stride: side length of the image divided by that of the last feature map: 8, 16 or 32. Stages that would
            exceed it keep the resolution and dilate their middle layers instead, like the convolutions of timm's
            ResNet.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate, zero_init_last: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes); any height and width.
    """

    def __init__(
        self,
        middle: MiddleLayer,
        gate: Gate = nn.Identity,
        *,
        layers: tuple[int, ...] = (3, 4, 6, 3),
        planes: tuple[int, ...] = (64, 128, 256, 512),
        base_width: int = 64,
        stem_width: int = 64,
        small_input: bool = False,
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
            name = type(self).__name__
            raise ValueError(f"{name}: unknown output_stride={output_stride!r}. Expected 8, 16 or 32")
        self.in_chans = in_chans
        conv7x7 = nn.Conv2d(in_chans, stem_width, 7, 2, 3, bias=False)
        self.conv1: nn.Module = small_stem(in_chans, stem_width) if small_input else conv7x7
        self.bn1 = nn.BatchNorm2d(stem_width)
        self.act1 = nn.ReLU(inplace=True)
        self.maxpool = nn.MaxPool2d(3, 2, 1)
        self.feature_info: list[dict[str, Any]] = [{"num_chs": stem_width, "reduction": 2, "module": "act1"}]

        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)  # [stage][block]
        inputs, reduction, dilation = stem_width, 4, 1
        for i, (depth, plane) in enumerate(per_stage(type(self).__name__, layers=layers, planes=planes)):
            blocks, before, down = [], dilation, 2 if i else 1
            if reduction * down > output_stride:
                down, dilation = 1, dilation * down
            reduction *= down
            for j in range(depth):
                # The first block reads the previous stage's output, so it keeps that stage's dilation.
                stride, block_dilation = (down, before) if j == 0 else (1, dilation)
                site = Site(i + 1, plane * base_width // 64, stride, block_dilation)
                blocks.append(Bottleneck(inputs, plane, site, middle, gate, drop_path[i][j]))
                inputs = plane * Bottleneck.expansion
            self.add_module(f"layer{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": inputs, "reduction": reduction, "module": f"layer{i + 1}"})

        self.num_features = inputs
        self.make_head(num_classes, global_pool, drop_rate)
        self.init_weights(zero_init_last)

    @torch.no_grad()
    def init_weights(self, zero_init_last: bool = True) -> None:
        """Initialise dense convolutions as in ResNet, and blocks as identities. Other layers keep their values."""
        for module in self.modules():
            if isinstance(module, nn.Conv2d) and module.groups == 1:
                nn.init.kaiming_normal_(module.weight, mode="fan_out", nonlinearity="relu")
            elif isinstance(module, Bottleneck) and zero_init_last:
                nn.init.zeros_(module.bn3.weight)

    def group_matcher(self, coarse: bool = False) -> dict[str, str]:
        return {"stem": r"^conv1|bn1|maxpool", "blocks": r"^layer(\d+)" if coarse else r"^layer(\d+)\.(\d+)"}

    def deploy(self: _Network) -> _Network:
        """Fold batch norms, and the kernels, alpha and beta of ACmix layers, for inference, in place.

        A norm that follows any middle layer other than a convolution or an ACmix layer is kept. See
        `acmix_zoo.layers.deploy`.

        Raises:
            ValueError: the network is in training mode.
        """
        check_eval_mode(self)
        if isinstance(self.conv1, nn.Sequential):
            fold(self.conv1, "0", "1")
            fold(self, "conv1.3", "bn1")
        else:
            fold(self, "conv1", "bn1")
        for block in self.modules():
            if isinstance(block, Bottleneck):
                for i in (1, 2, 3):
                    fold(block, f"conv{i}", f"bn{i}")
                for layer in (block.downsample, block.conv2):
                    if isinstance(layer, nn.Sequential):
                        fold(layer, "0", "1")
        return self

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """Run the stem (i = 0, as in timm), or `layer{i}`, with the pooling before `layer1`."""
        if i == 0:
            check_dtype(type(self).__name__, x, self.conv1)
            return self.act1(self.bn1(self.conv1(x)))  # type: ignore[no-any-return]
        return self.run_blocks(self.get_submodule(f"layer{i}"), self.maxpool(x) if i == 1 else x)

    def drop_stage(self, i: int) -> None:
        delattr(self, f"layer{i}")


def create_resnet(
    network: type[_Network],
    variant: str,
    pretrained: bool,
    defaults: dict[str, Any],
    kwargs: dict[str, Any],
    filter_fn: Callable[[dict[str, Tensor], nn.Module], dict[str, Tensor]] | None = None,
) -> _Network:
    """Build a registered ResNet with timm's builder; `kwargs` override `defaults`."""
    stages = len(kwargs.get("layers", defaults["layers"]))
    feature_cfg = {"out_indices": tuple(range(stages + 1))}
    return build(network, variant, pretrained, feature_cfg, filter_fn, **{**defaults, **kwargs})  # type: ignore[return-value]
