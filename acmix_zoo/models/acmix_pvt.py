"""PVT, the pyramid vision transformer (version 1), and ACmix on it.

Source of PVT: "Pyramid Vision Transformer", ICCV 2021, table 1, and its released code. Parameters have that code's
names, so its checkpoints load as they are. ACmix-PVT was never released: `acmix_pvt_t/s` are **reconstructions** from
their published costs, see docs/reconstructions.md; `acmix_pvt_pico` is ours, for 32-pixel images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx
from timm.layers import calculate_drop_path_rates
from timm.models import checkpoint
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.models.feature_maps import check_output_fmt, to_output_fmt
from acmix_zoo.models.pvt_blocks import Block, PatchEmbed, Size, as_map, resized_positions
from acmix_zoo.models.registry import (
    IMAGENET,
    SMALL,
    build,
    feature_take_indices,
    generate_default_cfgs,
    record_arguments,
    register_model,
)
from acmix_zoo.models.silent_convolution import silent_convolution
from acmix_zoo.models.stem import small_stem

__all__ = ["PVT"]

torch.fx.wrap("resized_positions")  # it branches on the map's size, so fx must keep the call


class PVT(nn.Module):
    """Pyramid vision transformer, plain or with ACmix, with timm's model interface.

    Args:
        img_size: image side or (height, width) that the learned positions are made for; they are interpolated for other
            sizes, which run too.
        patch_size: of the first stage; the following ones take patches of 2×2.
        depths, embed_dims, num_heads, mlp_ratios, reductions: for each stage; `reductions` are the sides of the patches
            whose keys and values the attention sees.
        paths: "attention" is PVT; "both" is ACmix-PVT; "convolution" the other path alone.
        small_input: two 3×3 convolutions in front of the patches, for 32-pixel images; they halve the image's side, and
            the patches have half of `patch_size`.
        in_chans, num_classes, global_pool, drop_rate, proj_drop_rate, drop_path_rate: as in timm. global_pool is
            "token" (the class token), "avg" (over positions) or "" (all tokens).

    Shape: (B, in_chans, H, W) → (B, num_classes); features are (B, 1 + H·W/32², C), the class token first; NCHW from
    `features_only`.
    """

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        depths: tuple[int, ...] = (2, 2, 2, 2),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        num_heads: tuple[int, ...] = (1, 2, 5, 8),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        reductions: tuple[int, ...] = (8, 4, 2, 1),
        paths: Paths = "both",
        small_input: bool = False,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "token",
        drop_rate: float = 0.0,
        proj_drop_rate: float = 0.0,
        drop_path_rate: float = 0.1,
    ) -> None:
        super().__init__()
        self.num_classes, self.in_chans = num_classes, in_chans
        self.grad_checkpointing = False
        self.stem: nn.Module = nn.Identity()
        inputs, patch = in_chans, patch_size
        h, w = (img_size, img_size) if isinstance(img_size, int) else img_size
        if small_input:
            inputs, patch, h, w = embed_dims[0], patch_size // 2, -(-h // 2), -(-w // 2)
            self.stem = nn.Sequential(*small_stem(in_chans, inputs), nn.BatchNorm2d(inputs), nn.ReLU(inplace=True))
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)  # [stage][block]
        self.feature_info: list[dict[str, Any]] = []
        self.grids: list[Size] = []
        shapes = zip(depths, embed_dims, num_heads, mlp_ratios, reductions, strict=True)
        for i, (depth, dim, heads, mlp_ratio, reduction) in enumerate(shapes):
            h, w = -(-h // patch), -(-w // patch)
            self.grids.append((h, w))
            blocks = [
                Block(dim, mlp_ratio, drop_path[i][j], proj_drop_rate, heads=heads, reduction=reduction, paths=paths)
                for j in range(depth)
            ]
            prefix = int(i == len(depths) - 1)
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(inputs, dim, patch))
            self.register_parameter(f"pos_embed{i + 1}", nn.Parameter(torch.zeros(1, prefix + h * w, dim)))
            self.add_module(f"block{i + 1}", nn.ModuleList(blocks))
            self.feature_info.append(
                {"num_chs": dim, "reduction": patch_size * 2**i, "module": f"block{i + 1}.{depth - 1}"}
            )
            inputs, patch = dim, 2
        self.last_stage = len(depths) - 1  # the one with the class token
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm: nn.Module = nn.LayerNorm(dim, eps=1e-6)
        self.num_features = self.head_hidden_size = dim
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)
        self.init_weights(narrow=small_input)

    @torch.no_grad()
    def init_weights(self, narrow: bool = False) -> None:
        """PVT's start for matrices, positions and the class token; convolutions and convolution paths keep theirs.

        PVT's 0.02 is made for hundreds of channels. `narrow` takes 1/√channels instead, which keeps the variance: with
        64 channels, 0.02 learned far more slowly here.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("pos_embed") or name == "cls_token":
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if narrow else 0.02)
                nn.init.zeros_(module.bias)

    def no_weight_decay(self) -> set[str]:
        names = {name for name, _ in self.named_parameters()}
        return {
            name for name in names if name.startswith(("pos_embed", "cls_token")) or name.endswith(("alpha", "beta"))
        }

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        whole = r"^(?:patch_embed|pos_embed|block)(\d+)"
        fine = [
            (r"^(?:patch_embed|pos_embed)(\d+)", (0,)),
            (r"^block(\d+)\.(\d+)", None),
            (r"^cls_token|^norm", (99999,)),
        ]
        return {"stem": r"^stem|^patch_embed1|^pos_embed1", "blocks": whole if coarse else fine}

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        self.grad_checkpointing = enable

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            if global_pool not in ("token", "avg", ""):
                raise ValueError(f'PVT: global_pool must be "token", "avg" or "", got {global_pool!r}')
            self.global_pool = global_pool
            record_arguments(self, global_pool=global_pool)
        self.num_classes = num_classes
        like = next(self.parameters())
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=like.device, dtype=like.dtype)
        self.head.train(self.training)

    def _stage(self, i: int, x: Tensor) -> tuple[Tensor, Size]:
        """(B, C, H, W) → tokens (B, prefix + H′·W′, C′) and (H′, W′)."""
        x = self.get_submodule(f"patch_embed{i + 1}")(x)  # (B, H′, W′, C′)
        size = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)  # (B, H′·W′, C′)
        blocks: nn.ModuleList = self.get_submodule(f"block{i + 1}")  # type: ignore[assignment]
        if i == self.last_stage:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + resized_positions(getattr(self, f"pos_embed{i + 1}"), self.grids[i], size)
        for block in blocks:
            x = checkpoint(block, x, size) if self.grad_checkpointing else block(x, size)
        return x, size

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

        With `output_fmt="NHWC"` they are (B, H/reduction, W/reduction, C). The final features are always tokens.
        """
        check_output_fmt("PVT", output_fmt)
        take, last = feature_take_indices(len(self.feature_info), indices)
        check_dtype("PVT", x, self.get_submodule("patch_embed1.proj"))
        x, maps = self.stem(x), []
        end = len(self.feature_info) - 1
        for i in range(last + 1 if stop_early else end + 1):
            tokens, size = self._stage(i, x)
            tokens = self.norm(tokens) if i == end and norm else tokens
            x = as_map(tokens, size)
            if i in take:
                maps.append(to_output_fmt(x, output_fmt))
        if intermediates_only:
            return maps
        return (self.norm(tokens) if i == end and not norm else tokens), maps

    def prune_intermediate_layers(
        self, indices: int | list[int] = 1, prune_norm: bool = False, prune_head: bool = True
    ) -> list[int]:
        """Drop the stages behind the last index, the class token and the norm that are theirs, and the classifier."""
        take, last = feature_take_indices(len(self.feature_info), indices)
        pruned = last < len(self.feature_info) - 1
        for i in range(last + 1, len(self.feature_info)):
            for name in ("patch_embed", "pos_embed", "block"):
                delattr(self, f"{name}{i + 1}")
        del self.feature_info[last + 1 :]
        if pruned:
            del self.cls_token
            self.num_features = self.head_hidden_size = int(self.feature_info[last]["num_chs"])
        if prune_norm or pruned:
            self.norm = nn.Identity()
        if prune_head or pruned:
            self.reset_classifier(0, "")
        return take

    def forward_features(self, x: Tensor) -> Tensor:
        check_dtype("PVT", x, self.get_submodule("patch_embed1.proj"))
        x = self.stem(x)
        for i in range(len(self.feature_info) - 1):
            x = as_map(*self._stage(i, x))
        return self.norm(self._stage(len(self.feature_info) - 1, x)[0])  # type: ignore[no-any-return]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            x = x[:, 0] if self.global_pool == "token" else x[:, 1:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.forward_head(self.forward_features(x))


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Fit weights made for another image size: positions are interpolated."""
    own, out = dict(model.named_parameters()), {}
    for key, value in state_dict.items():
        theirs, ours = value.shape, own[key].shape if key in own else None
        if key.startswith("pos_embed") and ours is not None and theirs != ours and theirs[2] == ours[2]:
            i = int(key.removeprefix("pos_embed")) - 1
            side = math.isqrt(value.shape[1])  # of a square map; the class token adds one position
            value = resized_positions(value, (side, side), model.grids[i])  # type: ignore[index,arg-type]
        out[key] = value
    return out


def _pretrained(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """For `pretrained=`, also with the weights of a plain PVT."""
    return silent_convolution(checkpoint_filter_fn(state_dict, model), model)


_ENDS = {"first_conv": "patch_embed1.proj", "classifier": "head"}
_TOKENS = {"pool_size": None}  # as in timm's vision transformers: the last features are tokens, not a map
default_cfgs = generate_default_cfgs(
    {
        **{name: {**IMAGENET, **_ENDS, **_TOKENS} for name in ("pvt_tiny", "pvt_small", "acmix_pvt_t", "acmix_pvt_s")},
        "acmix_pvt_pico": {**SMALL, **_TOKENS, "first_conv": "stem.0", "classifier": "head"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> PVT:
    stages = len(kwargs.get("depths", defaults["depths"]))
    # "getter" goes through forward_intermediates, which gives NCHW.
    feature_cfg = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build(PVT, variant, pretrained, feature_cfg, _pretrained, **{**defaults, **kwargs})  # type: ignore[return-value]


@register_model
def pvt_tiny(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Tiny: 13,229,288 parameters, 1.93 GMACs, 224-pixel images, 1000 classes. As published, 75.1 %."""
    return _create("pvt_tiny", pretrained, {"depths": (2, 2, 2, 2), "paths": "attention"}, kwargs)


@register_model
def pvt_small(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Small: 24,485,864 parameters, 3.82 GMACs, 224-pixel images, 1000 classes. As published, 79.8 %."""
    return _create("pvt_small", pretrained, {"depths": (3, 4, 6, 3), "paths": "attention"}, kwargs)


@register_model
def acmix_pvt_t(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT-T, a reconstruction: 13,396,128 parameters, 2.02 GMACs, 224-pixel images,
    1000 classes. Published: 78.0 %."""
    return _create("acmix_pvt_t", pretrained, {"depths": (2, 2, 2, 2)}, kwargs)


@register_model
def acmix_pvt_s(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT-S, a reconstruction: 24,824,755 parameters, 3.97 GMACs, 224-pixel images,
    1000 classes. Published: 81.7 %."""
    return _create("acmix_pvt_s", pretrained, {"depths": (3, 4, 6, 3)}, kwargs)


@register_model
def acmix_pvt_pico(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT for 32-pixel images: 847,057 parameters, 25.3 MMACs, stages of two and three blocks, 10
    classes. It pools all positions instead of reading only the class token, so that the last convolution is used.
    As an encoder it halves the image three times: depth 3, maps of 1/4 and 1/8."""
    defaults = {
        "img_size": 32, "patch_size": 4, "depths": (2, 3), "embed_dims": (64, 128), "num_heads": (2, 4),
        "mlp_ratios": (4, 4), "reductions": (2, 1), "small_input": True, "global_pool": "avg", "drop_path_rate": 0.0,
    }  # fmt: skip
    return _create("acmix_pvt_pico", pretrained, defaults, kwargs)
