"""SAN, the self-attention network with vector attention, pairwise and patchwise, and ACmix-SAN.

Source of SAN: "Exploring Self-attention for Image Recognition", CVPR 2020, table 1, and its released code, which only
runs on CUDA. Parameters have the names of that code, so its checkpoints load unchanged. ACmix-SAN was never released:
`acmix_san10/15/19` are **reconstructions** from its published costs, see docs/reconstructions.md. `acmix_san_pico` is
our addition for 32-pixel images.
"""

from __future__ import annotations

from typing import Any, Literal, get_args

from timm.layers import DropPath, calculate_drop_path_rates
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.layers.san_attention import PairwiseSAM, PatchwiseSAM
from acmix_zoo.models.backbone import MapBackbone, per_stage
from acmix_zoo.models.registry import IMAGENET, SMALL, build, generate_default_cfgs, register_model
from acmix_zoo.models.silent_convolution import add_silent_convolution
from acmix_zoo.models.stem import small_stem

__all__ = ["SAN"]

Form = Literal["pairwise", "patchwise"]

# Number of blocks in each stage of the published networks, by depth.
LAYERS: dict[int, tuple[int, ...]] = {10: (2, 1, 2, 4, 1), 15: (3, 2, 3, 5, 2), 19: (3, 3, 4, 6, 3)}
# Side length of the neighbourhood and channels of each stage, the same for all of them.
KERNELS: tuple[int, ...] = (3, 7, 7, 7, 7)
WIDTHS: tuple[int, ...] = (64, 256, 512, 1024, 2048)


class Bottleneck(nn.Module):
    """A residual block: batch norm, self-attention to a quarter of the channels, batch norm, and 1×1 back to all."""

    def __init__(self, channels: int, form: Form, drop_path: float, **sam: Any) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(channels)
        self.sam = (PairwiseSAM if form == "pairwise" else PatchwiseSAM)(channels, **sam)
        self.bn2 = nn.BatchNorm2d(channels // 4)
        self.conv = nn.Conv2d(channels // 4, channels, 1)
        self.relu = nn.ReLU(inplace=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        out = self.relu(self.bn2(self.sam(self.relu(self.bn1(x)))))
        return x + self.drop_path(self.conv(out))  # type: ignore[no-any-return]


class SAN(MapBackbone):
    """Self-attention network, plain or with ACmix, with timm's model interface.

    Args:
        layers: number of blocks in each stage.
        form: how attention weights are computed: "pairwise" from two positions, "patchwise" from a whole neighbourhood.
        paths: "attention" is SAN, "both" is ACmix-SAN, and "convolution" is the convolution path alone.
        kernels: side length of the neighbourhood in each stage.
        widths: channels of each stage.
        small_input: use a stem of two 3×3 convolutions with stride 2 in total, for 32-pixel images. It replaces the 1×1
            stem and the first pooling.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes), for any height and width. Odd sides are rounded up when a feature map
    is halved, as in the other networks. The released code drops the last row or column instead.
    """

    def __init__(
        self,
        layers: tuple[int, ...] = LAYERS[10],
        form: Form = "patchwise",
        *,
        paths: Paths = "attention",
        kernels: tuple[int, ...] = KERNELS,
        widths: tuple[int, ...] = WIDTHS,
        small_input: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        if form not in get_args(Form):
            raise ValueError(f'SAN: form must be "pairwise" or "patchwise", got {form!r}')
        self.in_chans = in_chans
        inputs = widths[0]
        conv1x1 = nn.Conv2d(in_chans, inputs, 1, bias=False)
        self.conv_in: nn.Module = small_stem(in_chans, inputs) if small_input else conv1x1
        self.bn_in = nn.BatchNorm2d(inputs)
        self.relu = nn.ReLU(inplace=True)
        self.feature_info = []
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(layers), stagewise=True)  # [stage][block]
        for i, (depth, kernel, width) in enumerate(per_stage("SAN", layers=layers, kernels=kernels, widths=widths)):
            blocks = [Bottleneck(width, form, drop_path[i][j], kernel=kernel, paths=paths) for j in range(depth)]
            self.add_module(f"pool{i}", nn.Identity() if small_input and i == 0 else nn.MaxPool2d(2, 2, ceil_mode=True))
            self.add_module(f"conv{i}", nn.Conv2d(inputs, width, 1, bias=False))
            self.add_module(f"layer{i}", nn.Sequential(*blocks))
            self.add_module(f"bn{i}", nn.BatchNorm2d(width))
            self.add_module(f"act{i}", nn.ReLU(inplace=True))
            self.feature_info.append({"num_chs": width, "reduction": 2 ** (i + 1), "module": f"act{i}"})
            inputs = width
        self.num_features = inputs
        self.make_head(num_classes, global_pool, drop_rate)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        blocks = r"^(?:conv|layer|bn)(\d+)" if coarse else [(r"^layer(\d+)\.(\d+)", None), (r"^(?:conv|bn)(\d+)", (0,))]
        return {"stem": r"^conv_in|^bn_in", "blocks": blocks}

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """Pool, widen with a 1×1 convolution, and run the blocks, batch norm and ReLU.

        Shape: (B, C, H, W) → (B, width, H/2, W/2).
        """
        if i == 0:
            check_dtype("SAN", x, self.conv_in)
            x = self.relu(self.bn_in(self.conv_in(x)))
        x = self.get_submodule(f"conv{i}")(self.get_submodule(f"pool{i}")(x))
        x = self.run_blocks(self.get_submodule(f"layer{i}"), x)
        return self.get_submodule(f"act{i}")(self.get_submodule(f"bn{i}")(x))  # type: ignore[no-any-return]

    def drop_stage(self, i: int) -> None:
        for name in ("pool", "conv", "layer", "bn", "act"):
            delattr(self, f"{name}{i}")


_CLASSIFIER = {"classifier": "fc"}
default_cfgs = generate_default_cfgs(
    {
        **{f"san{depth}_{form}": {**IMAGENET, **_CLASSIFIER, "first_conv": "conv_in"}
           for depth in (10, 15, 19) for form in ("pairwise", "patchwise")},
        **{f"acmix_san{depth}": {**IMAGENET, **_CLASSIFIER, "first_conv": "conv_in"} for depth in (10, 15, 19)},
        "acmix_san_pico": {**SMALL, **_CLASSIFIER, "first_conv": "conv_in.0"},
    }
)  # fmt: skip


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> SAN:
    stages = len(kwargs.get("layers", defaults["layers"]))
    feature_cfg = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build(SAN, variant, pretrained, feature_cfg, add_silent_convolution, **{**defaults, **kwargs})  # type: ignore[return-value]


@register_model
def san10_pairwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN10, pairwise: 10,531,848 parameters, 2.04 GMACs, 224-pixel images, 1000 classes. Published: 74.9 %."""
    return _create("san10_pairwise", pretrained, {"layers": LAYERS[10], "form": "pairwise"}, kwargs)


@register_model
def san15_pairwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN15, pairwise: 14,065,436 parameters, 2.86 GMACs, 224-pixel images, 1000 classes. Published: 76.6 %."""
    return _create("san15_pairwise", pretrained, {"layers": LAYERS[15], "form": "pairwise"}, kwargs)


@register_model
def san19_pairwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN19, pairwise: 17,596,156 parameters, 3.64 GMACs, 224-pixel images, 1000 classes. Published: 76.9 %."""
    return _create("san19_pairwise", pretrained, {"layers": LAYERS[19], "form": "pairwise"}, kwargs)


@register_model
def san10_patchwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN10, patchwise: 11,841,124 parameters, 1.79 GMACs, 224-pixel images, 1000 classes. Published: 77.1 %."""
    return _create("san10_patchwise", pretrained, {"layers": LAYERS[10]}, kwargs)


@register_model
def san15_patchwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN15, patchwise: 16,181,310 parameters, 2.48 GMACs, 224-pixel images, 1000 classes. Published: 78.0 %."""
    return _create("san15_patchwise", pretrained, {"layers": LAYERS[15]}, kwargs)


@register_model
def san19_patchwise(pretrained: bool = False, **kwargs: Any) -> SAN:
    """SAN19, patchwise: 20,518,470 parameters, 3.13 GMACs, 224-pixel images, 1000 classes. Published: 78.2 %."""
    return _create("san19_patchwise", pretrained, {"layers": LAYERS[19]}, kwargs)


@register_model
def acmix_san10(pretrained: bool = False, **kwargs: Any) -> SAN:
    """ACmix-SAN10, a reconstruction: 12,125,988 parameters, 1.85 GMACs, 224-pixel images,
    1000 classes. Published: 77.6 %."""
    return _create("acmix_san10", pretrained, {"layers": LAYERS[10], "paths": "both"}, kwargs)


@register_model
def acmix_san15(pretrained: bool = False, **kwargs: Any) -> SAN:
    """ACmix-SAN15, a reconstruction: 16,642,466 parameters, 2.57 GMACs, 224-pixel images,
    1000 classes. Published: 78.4 %."""
    return _create("acmix_san15", pretrained, {"layers": LAYERS[15], "paths": "both"}, kwargs)


@register_model
def acmix_san19(pretrained: bool = False, **kwargs: Any) -> SAN:
    """ACmix-SAN19, a reconstruction: 21,155,754 parameters, 3.26 GMACs, 224-pixel images,
    1000 classes. Published: 78.7 %."""
    return _create("acmix_san19", pretrained, {"layers": LAYERS[19], "paths": "both"}, kwargs)


@register_model
def acmix_san_pico(pretrained: bool = False, **kwargs: Any) -> SAN:
    """ACmix-SAN for 32-pixel images: 676,638 parameters, 24.1 MMACs, three stages of two blocks, 10 classes.

    As a segmentation encoder, it has depth 3; its feature maps have strides 2, 4 and 8.
    """
    defaults = {
        "layers": (2, 2, 2), "widths": (64, 256, 512), "kernels": (3, 5, 5), "paths": "both", "small_input": True,
    }  # fmt: skip
    return _create("acmix_san_pico", pretrained, defaults, kwargs)
