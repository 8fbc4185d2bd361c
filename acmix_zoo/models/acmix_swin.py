"""ACmix-Swin: the Swin Transformer whose window attention shares its projections with a convolution.

Source: ACmix, CVPR 2022, table 1, and its released code for Swin-T and Swin-S. `acmix_swin_b` has the widths of Swin-B;
`acmix_swin_pico` and `acmix_swin_nano` are our additions for images of 32 and 64 pixels. In shifted blocks, the
convolution sees the rolled feature map, as in the released code. With `conv_before_shift=True`, it sees the feature map
before it is rolled (see `WindowACmix`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import (
    ClassifierHead,
    PatchEmbed,
    calculate_drop_path_rates,
    to_2tuple,
)
from torch import Tensor, nn

from acmix_zoo.layers import WindowACmix
from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.layers.deploy import check_eval_mode, fold
from acmix_zoo.models.backbone import Backbone, per_stage
from acmix_zoo.models.registry import (
    IMAGENET,
    MEDIUM,
    SMALL,
    build,
    generate_default_cfgs,
    record_arguments,
    register_model,
)
from acmix_zoo.models.stem import small_stem_with_norm
from acmix_zoo.models.swin_stage import PatchMerging, Stage
from acmix_zoo.models.swin_weights import checkpoint_filter_fn, pretrained_filter_fn
from acmix_zoo.ops.tracing import ceil_div

__all__ = ["ACmixSwin", "checkpoint_filter_fn"]  # the latter is looked up in the module of a network

Size = tuple[int, int]

# Arguments that differ between the published networks, and that can be inferred from the weight shapes.
WIDTHS_AND_DEPTHS: dict[str, dict[str, Any]] = {
    "acmix_swin_t": {"embed_dim": 96, "depths": (2, 2, 6, 2), "num_heads": (3, 6, 12, 24)},
    "acmix_swin_s": {"embed_dim": 96, "depths": (2, 2, 18, 2), "num_heads": (3, 6, 12, 24)},
    "acmix_swin_b": {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32)},
}


class ACmixSwin(Backbone):
    """Swin Transformer of ACmix blocks, with timm's model interface.

    Args:
        img_size: side length or (height, width) of the images for which the windows are chosen. Images of other sizes
            work too and are padded to whole windows. `set_input_size` chooses the windows for a different size.
        patch_size, embed_dim, depths, num_heads, window_size, mlp_ratio: as in Swin.
        small_input: put two 3×3 convolutions in front of the patches, for 32-pixel images. They halve the resolution,
            and the side length of the patches is halved in return.
        kernel_conv, conv_before_shift, paths: arguments of `WindowACmix`.
        in_chans, num_classes, global_pool, drop_rate, proj_drop_rate, drop_path_rate: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes). Features are (B, H/32, W/32, C), and NCHW with `features_only`.
    """

    output_fmt = "NHWC"
    NO_WEIGHT_DECAY = r"(relative_position_bias_table|alpha|beta)$"

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int | Size = 4,
        *,
        embed_dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        num_heads: tuple[int, ...] = (3, 6, 12, 24),
        window_size: int | Size = 7,
        mlp_ratio: float = 4.0,
        small_input: bool = False,
        kernel_conv: int = 3,
        conv_before_shift: bool = False,
        paths: Paths = "both",
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.stem: nn.Module = nn.Identity()
        if small_input:
            self.stem = small_stem_with_norm(in_chans, embed_dim)
        self.stem_stride = 2 if small_input else 1
        patch: Any = self._after_stem(patch_size)  # timm accepts two sides, although its annotation says one
        reduction = self.stem_stride * max(patch)
        self.patch_embed = PatchEmbed(
            self._after_stem(img_size), patch, embed_dim if small_input else in_chans,
            embed_dim, norm_layer=nn.LayerNorm, output_fmt="NHWC", strict_img_size=False, dynamic_img_pad=True,
        )  # fmt: skip
        acmix = {"kernel_conv": kernel_conv, "conv_before_shift": conv_before_shift, "paths": paths}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)  # [stage][block]
        self.feature_info = []
        stages = []
        for i, (depth, heads) in enumerate(per_stage("ACmixSwin", depths=depths, num_heads=num_heads)):
            dim = embed_dim * 2**i
            stages.append(
                Stage(dim, depth, i > 0, drop_path[i], heads=heads, mlp_ratio=mlp_ratio, drop=proj_drop_rate, **acmix)
            )
            self.feature_info.append({"num_chs": dim, "reduction": reduction * 2**i, "module": f"layers.{i}"})
        self.layers = nn.Sequential(*stages)
        self.num_features = dim
        self.norm = nn.LayerNorm(dim)
        self.head = ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC")
        self.head_hidden_size = dim * self.head.global_pool.feat_mult()
        self.window_size: Size = to_2tuple(window_size)
        self.set_input_size()
        self.init_weights()

    def _after_stem(self, size: int | Size) -> Size:
        """Return the size of an image or patch after the stem."""
        h, w = to_2tuple(size)
        return -(-h // self.stem_stride), -(-w // self.stem_stride)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Initialise matrices and position tables as in Swin. The convolution paths keep their initial values."""
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                if module.bias is not None:
                    nn.init.zeros_(module.bias)
            elif isinstance(module, WindowACmix) and module.paths != "convolution":
                nn.init.trunc_normal_(module.relative_position_bias_table, std=0.02)

    def set_input_size(
        self,
        img_size: int | Size | None = None,
        patch_size: int | Size | None = None,
        window_size: int | Size | None = None,
    ) -> None:
        """Change the image size, patch size or window. Position tables are resized.

        Unlike in timm's Swin, the window does not change unless `window_size` is given.
        """
        if img_size is not None or patch_size is not None:
            self.patch_embed.set_input_size(
                img_size=None if img_size is None else self._after_stem(img_size),
                patch_size=None if patch_size is None else self._after_stem(patch_size),
            )
            for i, info in enumerate(self.feature_info):
                info["reduction"] = self.stem_stride * max(self.patch_embed.patch_size) * 2**i
        if window_size is not None:
            self.window_size = to_2tuple(window_size)
        given = {"img_size": img_size, "patch_size": patch_size, "window_size": window_size}
        record_arguments(self, **{name: to_2tuple(value) for name, value in given.items() if value is not None})
        embed = self.patch_embed
        h, w = (ceil_div(side, patch) for side, patch in zip(embed.img_size, embed.patch_size, strict=True))
        for stage in self.layers:
            if isinstance(stage.downsample, PatchMerging):
                h, w = (h + 1) // 2, (w + 1) // 2
            stage.set_window(self.window_size, (h, w))  # type: ignore[operator]

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [(r"^layers\.(\d+)\.downsample", (0,)), (r"^layers\.(\d+)\.\w+\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^stem|patch_embed", "blocks": r"^layers\.(\d+)" if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        for stage in self.layers:
            stage.grad_checkpointing = enable  # type: ignore[assignment]

    def get_classifier(self) -> nn.Module:
        return self.head.fc  # type: ignore[no-any-return]

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        parameter = next(self.parameters())
        self.num_classes = num_classes
        self.head.in_features = self.num_features  # fewer if the last stages were pruned
        self.head.reset(num_classes, pool_type=global_pool, device=parameter.device, dtype=parameter.dtype)
        self.head.train(self.training)
        self.head_hidden_size = self.num_features * self.head.global_pool.feat_mult()
        if global_pool is not None:
            record_arguments(self, global_pool=global_pool)

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) or the previous stage's (B, H, W, C) → (B, H′, W′, C′)."""
        return self.layers[i](self._embed(x) if i == 0 else x)  # type: ignore[no-any-return]

    def drop_stage(self, i: int) -> None:
        self.layers = self.layers[:i]

    def normalise(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]

    def to_map(self, x: Tensor, output_fmt: str) -> Tensor:
        return x if output_fmt == "NHWC" else x.permute(0, 3, 1, 2).contiguous()

    def deploy(self) -> ACmixSwin:
        """Fold batch norms, alpha and beta for inference, in place. To continue training, create the model again.

        Raises a ValueError in training mode.
        """
        check_eval_mode(self)
        if isinstance(self.stem, nn.Sequential):
            fold(self.stem, "0", "1")
            fold(self.stem, "3", "4")
        for module in self.modules():
            if isinstance(module, WindowACmix):
                module.deploy()
        return self

    def _embed(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) → (B, H/4, W/4, embed_dim)."""
        check_dtype("ACmixSwin", x, self.patch_embed.proj)
        x = self.stem(x)
        h, w = x.shape[2:]
        ph, pw = self.patch_embed.patch_size
        x = F.pad(x, (0, ceil_div(w, pw) * pw - w, 0, ceil_div(h, ph) * ph - h))  # to whole patches
        return self.patch_embed(x)  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]


_FIRST_AND_LAST = {"first_conv": "patch_embed.proj", "classifier": "head.fc"}
# official_in1k: the authors' files, at the share links of their README.
# swin_in1k: the weights of a plain Swin with alpha = 1 and beta = 0, for fine-tuning. They have its accuracy.
_LINK = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"
_OFFICIAL = {**IMAGENET, **_FIRST_AND_LAST, "license": None}
_SWIN = {**IMAGENET, **_FIRST_AND_LAST, "crop_pct": 0.9}
default_cfgs = generate_default_cfgs(
    {
        "acmix_swin_t.official_in1k": {**_OFFICIAL, "url": _LINK.format("210c89a6f9eb4bd0beb6")},
        "acmix_swin_t.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_tiny_patch4_window7_224.ms_in1k"},
        "acmix_swin_s.official_in1k": {**_OFFICIAL, "url": _LINK.format("8bed555e75c840f8a00d")},
        "acmix_swin_s.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_small_patch4_window7_224.ms_in1k"},
        "acmix_swin_b.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_base_patch4_window7_224.ms_in1k"},
        "acmix_swin_nano": {**MEDIUM, "first_conv": "stem.0", "classifier": "head.fc"},
        "acmix_swin_pico": {**SMALL, "first_conv": "stem.0", "classifier": "head.fc"},
    }
)


_FOR_SMALL_IMAGES = {
    "patch_size": 4,
    "embed_dim": 64,
    "window_size": 4,
    "small_input": True,
    "drop_path_rate": 0.0,
}


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ACmixSwin:
    arguments = {**WIDTHS_AND_DEPTHS.get(variant, {}), **defaults, **kwargs}
    # "getter" uses forward_intermediates, which returns NCHW.
    feature_cfg = {"out_indices": tuple(range(len(arguments["depths"]))), "feature_cls": "getter"}
    return build(ACmixSwin, variant, pretrained, feature_cfg, pretrained_filter_fn, **arguments)  # type: ignore[return-value]


@register_model
def acmix_swin_t(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-T: 28,649,908 parameters, 4.65 GMACs, 224-pixel images, 1000 classes. Published: 81.9 %."""
    return _create("acmix_swin_t", pretrained, {"drop_path_rate": 0.2}, kwargs)


@register_model
def acmix_swin_s(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-S: 50,345,080 parameters, 8.99 GMACs, 224-pixel images, 1000 classes. Published: 83.5 %."""
    return _create("acmix_swin_s", pretrained, {"drop_path_rate": 0.3}, kwargs)


@register_model
def acmix_swin_b(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-B: 88,753,232 parameters, 15.8 GMACs, 224-pixel images, 1000 classes. Not in the paper."""
    return _create("acmix_swin_b", pretrained, {"drop_path_rate": 0.5}, kwargs)


@register_model
def acmix_swin_pico(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin for 32-pixel images: 599,462 parameters, 21.5 MMACs, two stages of two blocks, 10 classes.

    As a segmentation encoder, it has depth 3; its feature maps have strides 4 and 8.
    """
    defaults = {"img_size": 32, "depths": (2, 2), "num_heads": (2, 4)}
    return _create("acmix_swin_pico", pretrained, {**_FOR_SMALL_IMAGES, **defaults}, kwargs)


@register_model
def acmix_swin_nano(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin for 64-pixel images: 2,822,064 parameters, 142 MMACs, 200 classes.

    Three stages of two, four and two blocks, with windows of 4×4 patches. Images whose sides are no multiples of 64
    pixels are padded in the last stage. As a segmentation encoder, it has depth 4; its feature maps have strides 4, 8
    and 16.
    """
    defaults = {"img_size": 64, "depths": (2, 4, 2), "num_heads": (2, 4, 8)}
    return _create("acmix_swin_nano", pretrained, {**_FOR_SMALL_IMAGES, **defaults}, kwargs)
