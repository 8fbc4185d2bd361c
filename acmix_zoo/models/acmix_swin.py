"""ACmix-Swin: the Swin Transformer whose window attention shares its projections with a convolution.

Source: ACmix, CVPR 2022, table 1, and its released code for Swin-T and Swin-S; `acmix_swin_b` has Swin-B's widths,
`acmix_swin_pico` is ours, for 32-pixel images. The convolution of shifted blocks runs on the rolled map, as released;
`conv_before_shift=True` runs it on the map as it lies (see `WindowACmix`).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from timm.layers import ClassifierHead, PatchEmbed, calculate_drop_path_rates, resample_patch_embed, to_2tuple
from torch import Tensor, nn

from acmix_zoo.layers import WindowACmix
from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.layers.deploy import fold
from acmix_zoo.models.feature_maps import check_output_fmt
from acmix_zoo.models.plain_swin import from_plain_swin, is_plain_swin
from acmix_zoo.models.registry import (
    IMAGENET,
    SMALL,
    build,
    feature_take_indices,
    generate_default_cfgs,
    record_arguments,
    register_model,
)
from acmix_zoo.models.stem import small_stem
from acmix_zoo.models.swin_blocks import PatchMerging, Size, Stage
from acmix_zoo.ops.tracing import ceil_div

__all__ = ["ACmixSwin"]


class ACmixSwin(nn.Module):
    """Swin Transformer of ACmix blocks, with timm's model interface.

    Args:
        img_size: image side or (height, width) that the windows are made for. Other sizes run too, padded to the
            windows; `set_input_size` makes the windows for another size.
        patch_size, embed_dim, depths, num_heads, window_size, mlp_ratio: as in Swin.
        small_input: two 3×3 convolutions in front of the patches, for 32-pixel images; they halve the image's side, and
            the patches have half of `patch_size`.
        kernel_conv, conv_before_shift, paths: of `WindowACmix`.
        in_chans, num_classes, global_pool, drop_rate, proj_drop_rate, drop_path_rate: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes); features are (B, H/32, W/32, C) inside, NCHW from `features_only`.
    """

    output_fmt = "NHWC"

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
            self.stem = nn.Sequential(
                *small_stem(in_chans, embed_dim), nn.BatchNorm2d(embed_dim), nn.ReLU(inplace=True)
            )
        self.stem_stride = 2 if small_input else 1
        patch: Size = to_2tuple(patch_size)
        behind_stem: Any = self._behind_stem(patch)  # timm accepts two sides, although its annotation says one
        self.patch_embed = PatchEmbed(
            self._behind_stem(img_size), behind_stem, embed_dim if small_input else in_chans,
            embed_dim, norm_layer=nn.LayerNorm, output_fmt="NHWC", strict_img_size=False, dynamic_img_pad=True,
        )  # fmt: skip
        acmix = {"kernel_conv": kernel_conv, "conv_before_shift": conv_before_shift, "paths": paths}
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)  # [stage][block]
        self.feature_info: list[dict[str, Any]] = []
        stages = []
        for i, (depth, heads) in enumerate(zip(depths, num_heads, strict=True)):
            dim = embed_dim * 2**i
            stages.append(
                Stage(dim, depth, i > 0, drop_path[i], heads=heads, mlp_ratio=mlp_ratio, drop=proj_drop_rate, **acmix)
            )
            self.feature_info.append({"num_chs": dim, "reduction": max(patch) * 2**i, "module": f"layers.{i}"})
        self.layers = nn.Sequential(*stages)
        self.num_features = dim
        self.norm = nn.LayerNorm(dim)
        self.head = ClassifierHead(dim, num_classes, pool_type=global_pool, drop_rate=drop_rate, input_fmt="NHWC")
        self.head_hidden_size = self.head.num_features
        self.window_size: Size = to_2tuple(window_size)
        self.set_input_size()
        self.init_weights()

    def _behind_stem(self, size: int | Size) -> Size:
        """An image's (or a patch's) size on the map that the stem hands to the patches."""
        h, w = to_2tuple(size)
        return -(-h // self.stem_stride), -(-w // self.stem_stride)

    @torch.no_grad()
    def init_weights(self) -> None:
        """Swin's start for matrices and position tables; the convolution paths keep theirs."""
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
                img_size=None if img_size is None else self._behind_stem(img_size),
                patch_size=None if patch_size is None else self._behind_stem(patch_size),
            )
            for i, info in enumerate(self.feature_info):
                info["reduction"] = self.stem_stride * max(self.patch_embed.patch_size) * 2**i
        if window_size is not None:
            self.window_size = to_2tuple(window_size)
        given = {"img_size": img_size, "patch_size": patch_size, "window_size": window_size}
        record_arguments(self, **{name: to_2tuple(value) for name, value in given.items() if value is not None})
        h, w = self.patch_embed.grid_size
        for stage in self.layers:
            if isinstance(stage.downsample, PatchMerging):
                h, w = (h + 1) // 2, (w + 1) // 2
            stage.set_window(self.window_size, (h, w))  # type: ignore[operator]

    def no_weight_decay(self) -> set[str]:
        endings = ("relative_position_bias_table", "alpha", "beta")
        return {name for name, _ in self.named_parameters() if name.endswith(endings)}

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

    def forward_intermediates(
        self,
        x: Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[Tensor] | tuple[Tensor, list[Tensor]]:
        """Return the maps of the stages, (B, C, H/reduction, W/reduction), as in timm's networks.

        With `output_fmt="NHWC"` they are (B, H/reduction, W/reduction, C). The final features always have this layout.
        """
        check_output_fmt("ACmixSwin", output_fmt)
        take, last = feature_take_indices(len(self.layers), indices)
        maps = []
        x = self._embed(x)
        for i, stage in enumerate(self.layers[: last + 1] if stop_early else self.layers):
            x = stage(x)
            if i in take:
                out = self.norm(x) if norm and i == len(self.layers) - 1 else x
                maps.append(out if output_fmt == "NHWC" else out.permute(0, 3, 1, 2).contiguous())
        if intermediates_only:
            return maps
        return (self.norm(x) if len(self.layers) - 1 <= last or not stop_early else x), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last index, the norm that was made for them, and the classifier."""
        take, last = feature_take_indices(len(self.layers), indices)
        pruned = last < len(self.layers) - 1
        self.layers = self.layers[: last + 1]
        if prune_norm or pruned:
            self.norm = nn.Identity()  # type: ignore[assignment]
        if pruned:
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def deploy(self) -> ACmixSwin:
        """Fold batch norms, alpha and beta for inference, in place. To continue training, create the model again."""
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
        x = F.pad(x, (0, ceil_div(w, pw) * pw - w, 0, ceil_div(h, ph) * ph - h))  # whole patches
        return self.patch_embed(x)  # type: ignore[no-any-return]

    def forward_features(self, x: Tensor) -> Tensor:
        """(B, in_chans, H, W) → (B, H/32, W/32, C)."""
        return self.norm(self.layers(self._embed(x)))  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)  # type: ignore[no-any-return]

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit weights made for another window or patch size: position tables and the patch embedding are resampled."""
    out, known = {}, model.state_dict().keys()
    for key, value in state_dict.items():
        if key not in known:
            pass  # another network's: for the load to report
        elif key.endswith("relative_position_bias_table"):
            attention = model.get_submodule(key.rpartition(".")[0])
            value = attention.resized_table(value)  # type: ignore[operator]
        elif key == "patch_embed.proj.weight":
            patch = model.get_parameter(key).shape[-2:]
            if value.shape[-2:] != patch:
                value = resample_patch_embed(value, list(patch))
        out[key] = value
    return out


def _pretrained(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """For `pretrained=`: the tag swin_in1k names the weights of a plain Swin."""
    if is_plain_swin(state_dict):
        state_dict = from_plain_swin(state_dict, model)
    return checkpoint_filter_fn(state_dict, model)


_ENDS = {"first_conv": "patch_embed.proj", "classifier": "head.fc"}
# official_in1k: the authors' files, at the share links of their README.
# swin_in1k: a plain Swin's weights with alpha 1, beta 0: its accuracy, and a start for fine-tuning.
_LINK = "https://cloud.tsinghua.edu.cn/f/{}/?dl=1"
_OFFICIAL = {**IMAGENET, **_ENDS, "license": None}
_SWIN = {**IMAGENET, **_ENDS, "crop_pct": 0.9}
default_cfgs = generate_default_cfgs(
    {
        "acmix_swin_t.official_in1k": {**_OFFICIAL, "url": _LINK.format("210c89a6f9eb4bd0beb6")},
        "acmix_swin_t.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_tiny_patch4_window7_224.ms_in1k"},
        "acmix_swin_s.official_in1k": {**_OFFICIAL, "url": _LINK.format("8bed555e75c840f8a00d")},
        "acmix_swin_s.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_small_patch4_window7_224.ms_in1k"},
        "acmix_swin_b.swin_in1k": {**_SWIN, "hf_hub_id": "timm/swin_base_patch4_window7_224.ms_in1k"},
        "acmix_swin_pico": {**SMALL, "first_conv": "stem.0", "classifier": "head.fc"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> ACmixSwin:
    stages = len(kwargs.get("depths", defaults["depths"]))
    # "getter" goes through forward_intermediates, which gives NCHW.
    feature_cfg = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build(ACmixSwin, variant, pretrained, feature_cfg, _pretrained, **{**defaults, **kwargs})  # type: ignore[return-value]


@register_model
def acmix_swin_t(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-T: 28,649,908 parameters, 4.65 GMACs, 224-pixel images, 1000 classes. As published, 81.9 %."""
    return _create("acmix_swin_t", pretrained, {"depths": (2, 2, 6, 2), "drop_path_rate": 0.2}, kwargs)


@register_model
def acmix_swin_s(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-S: 50,345,080 parameters, 8.99 GMACs, 224-pixel images, 1000 classes. As published, 83.5 %."""
    return _create("acmix_swin_s", pretrained, {"depths": (2, 2, 18, 2), "drop_path_rate": 0.3}, kwargs)


@register_model
def acmix_swin_b(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin-B: 88,753,232 parameters, 15.8 GMACs, 224-pixel images, 1000 classes. Not in the paper."""
    defaults = {"embed_dim": 128, "depths": (2, 2, 18, 2), "num_heads": (4, 8, 16, 32), "drop_path_rate": 0.5}
    return _create("acmix_swin_b", pretrained, defaults, kwargs)


@register_model
def acmix_swin_pico(pretrained: bool = False, **kwargs: Any) -> ACmixSwin:
    """ACmix-Swin for 32-pixel images: 599,462 parameters, 21.5 MMACs, two stages of two blocks, 10 classes.
    As an encoder it halves the image three times: depth 3, maps of 1/4 and 1/8."""
    defaults = {
        "img_size": 32, "patch_size": 4, "embed_dim": 64, "depths": (2, 2), "num_heads": (2, 4), "window_size": 4,
        "small_input": True, "drop_path_rate": 0.0,
    }  # fmt: skip
    return _create("acmix_swin_pico", pretrained, defaults, kwargs)
