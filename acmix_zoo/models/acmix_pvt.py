"""PVT, the Pyramid Vision Transformer (version 1), and ACmix-PVT.

Source of PVT: "Pyramid Vision Transformer", ICCV 2021, table 1, and its released code. Parameters have the names of
that code, so its checkpoints load unchanged. ACmix-PVT was never released: `acmix_pvt_t/s` are **reconstructions** from
its published costs, see docs/reconstructions.md. `acmix_pvt_pico` is our addition for 32-pixel images.
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.fx
from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from timm.models import checkpoint
from torch import Tensor, nn

from acmix_zoo.layers import ReducedACmix
from acmix_zoo.layers.argument_checks import Paths, check_dtype
from acmix_zoo.models.backbone import Backbone, per_stage
from acmix_zoo.models.pvt_tokens import PatchEmbed, as_map, resized_positions
from acmix_zoo.models.registry import IMAGENET, SMALL, build, generate_default_cfgs, record_arguments, register_model
from acmix_zoo.models.silent_convolution import add_silent_convolution
from acmix_zoo.models.stem import small_stem_with_norm

__all__ = ["PVT"]

Size = tuple[int, int]

# Number of blocks in each stage of the published networks, by size.
DEPTHS: dict[str, tuple[int, ...]] = {"tiny": (2, 2, 2, 2), "small": (3, 4, 6, 3)}
# Channels, heads, MLP ratio and side length of the reduced patches in each stage, the same for all of them.
EMBED_DIMS: tuple[int, ...] = (64, 128, 320, 512)
NUM_HEADS: tuple[int, ...] = (1, 2, 5, 8)
MLP_RATIOS: tuple[float, ...] = (8, 8, 4, 4)
REDUCTIONS: tuple[int, ...] = (8, 4, 2, 1)


class Block(nn.Module):
    """A transformer block of ReducedACmix and MLP, each with layer norm and residual: (B, L, C) → (B, L, C)."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, drop: float, **acmix: Any) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=1e-6)
        self.attn = ReducedACmix(dim, proj_drop=drop, **acmix)
        self.norm2 = nn.LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), drop=drop)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor, size: Size) -> Tensor:
        x = x + self.drop_path(self.attn(self.norm1(x), size))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class PVT(Backbone):
    """Pyramid vision transformer, plain or with ACmix, with timm's model interface.

    Args:
        img_size: side length or (height, width) of the images for which the position tables are created. For other
            sizes, the tables are interpolated.
        patch_size: side length of the patches of the first stage. Those of the other stages are 2×2.
        depths, embed_dims, num_heads, mlp_ratios: one value per stage, as in PVT.
        reductions: for each stage, the side length of the patches that share a key and a value.
        paths: "attention" is PVT, "both" is ACmix-PVT, and "convolution" is the convolution path alone.
        small_input: put two 3×3 convolutions in front of the patches, for 32-pixel images. They halve the resolution,
            and the side length of the patches is halved in return.
        in_chans, num_classes, global_pool, drop_rate, proj_drop_rate, drop_path_rate: as in timm. global_pool is
            "token" (the class token), "avg" (over positions) or "" (all tokens).

    Shape: (B, in_chans, H, W) → (B, num_classes). Features are tokens (B, 1 + H·W/32², C) with the class token first,
    and NCHW with `features_only`.
    """

    NO_WEIGHT_DECAY = r"^(pos_embed|cls_token)|(alpha|beta)$"

    def __init__(
        self,
        img_size: int | Size = 224,
        patch_size: int = 4,
        *,
        depths: tuple[int, ...] = DEPTHS["tiny"],
        embed_dims: tuple[int, ...] = EMBED_DIMS,
        num_heads: tuple[int, ...] = NUM_HEADS,
        mlp_ratios: tuple[float, ...] = MLP_RATIOS,
        reductions: tuple[int, ...] = REDUCTIONS,
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
        self.stem: nn.Module = nn.Identity()
        if tuple(reductions[-1:]) != (1,):
            raise ValueError(f"PVT: reductions={reductions}. Expected 1 in the last stage, which has the class token")
        inputs, stride, patch = in_chans, 1, patch_size
        h, w = (img_size, img_size) if isinstance(img_size, int) else img_size
        if small_input:
            inputs, stride, patch, h, w = embed_dims[0], 2, -(-patch_size // 2), -(-h // 2), -(-w // 2)
            self.stem = small_stem_with_norm(in_chans, inputs)
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)  # [stage][block]
        self.feature_info = []
        self.grids: list[Size] = []
        first_reduction = stride * patch
        shapes = per_stage(
            "PVT", depths=depths, embed_dims=embed_dims, num_heads=num_heads, mlp_ratios=mlp_ratios,
            reductions=reductions,
        )  # fmt: skip
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
                {"num_chs": dim, "reduction": first_reduction * 2**i, "module": f"block{i + 1}.{depth - 1}"}
            )
            inputs, patch = dim, 2
        self.last_stage = len(depths) - 1  # the one with the class token
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.norm = nn.LayerNorm(dim, eps=1e-6)
        self.num_features = self.head_hidden_size = dim
        self.head_drop = nn.Dropout(drop_rate)
        self.head: nn.Module = nn.Identity()
        self.reset_classifier(num_classes, global_pool)
        self.init_weights(narrow=small_input)

    @torch.no_grad()
    def init_weights(self, narrow: bool = False) -> None:
        """Initialise matrices, positions and the class token as in PVT. Everything else keeps its initial values.

        PVT's standard deviation of 0.02 suits hundreds of channels. `narrow` uses 1/√channels instead, which keeps the
        variance. With 64 channels, networks learned far more slowly from 0.02.
        """
        for name, parameter in self.named_parameters():
            if name.startswith("pos_embed") or name == "cls_token":
                nn.init.trunc_normal_(parameter, std=0.02)
        for module in self.modules():
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=module.in_features**-0.5 if narrow else 0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        stages = r"^(?:patch_embed|pos_embed|block)(\d+)"
        fine = [
            (r"^(?:patch_embed|pos_embed)(\d+)", (0,)),
            (r"^block(\d+)\.(\d+)", None),
            (r"^cls_token|^norm", (99999,)),
        ]
        return {"stem": r"^stem|^patch_embed1|^pos_embed1", "blocks": stages if coarse else fine}

    def get_classifier(self) -> nn.Module:
        return self.head

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        if global_pool is not None:
            choices = ("token", "avg", "") if hasattr(self, "cls_token") else ("avg", "")
            if global_pool not in choices:
                raise ValueError(f"PVT: global_pool must be one of {choices}, got {global_pool!r}")
            self.global_pool = global_pool
            record_arguments(self, global_pool=global_pool)
        self.num_classes = num_classes
        parameter = next(self.parameters())
        self.head = nn.Identity()
        if num_classes:
            self.head = nn.Linear(self.num_features, num_classes, device=parameter.device, dtype=parameter.dtype)
        self.head.train(self.training)

    def run_stage(self, i: int, x: Any) -> tuple[Tensor, Size]:
        """Images (B, in_chans, H, W), or the previous stage's result → tokens (B, prefix + H′·W′, C′) and (H′, W′)."""
        if i == 0:
            check_dtype("PVT", x, self.get_submodule("patch_embed1.proj"))
            x = self.stem(x)
        else:
            x = as_map(*x)
        x = self.get_submodule(f"patch_embed{i + 1}")(x)  # (B, H′, W′, C′)
        size = (x.shape[1], x.shape[2])
        x = x.flatten(1, 2)  # (B, H′·W′, C′)
        if i == self.last_stage:
            x = torch.cat([self.cls_token.expand(x.shape[0], -1, -1), x], 1)
        x = x + resized_positions(getattr(self, f"pos_embed{i + 1}"), self.grids[i], size)
        blocks: nn.ModuleList = self.get_submodule(f"block{i + 1}")  # type: ignore[assignment]
        for block in blocks:
            x = checkpoint(block, x, size) if self.grad_checkpointing else block(x, size)
        return x, size

    def drop_stage(self, i: int) -> None:
        for name in ("patch_embed", "pos_embed", "block"):
            delattr(self, f"{name}{i + 1}")
        if i == self.last_stage:
            del self.cls_token

    def normalise(self, x: tuple[Tensor, Size]) -> tuple[Tensor, Size]:
        return self.norm(x[0]), x[1]

    def to_map(self, x: tuple[Tensor, Size], output_fmt: str) -> Tensor:
        return super().to_map(as_map(*x), output_fmt)

    def to_output(self, x: tuple[Tensor, Size]) -> Tensor:
        return x[0]

    def forward_head(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        if self.global_pool:
            first = int(hasattr(self, "cls_token"))  # a network without its last stage has none
            x = x[:, 0] if first and self.global_pool == "token" else x[:, first:].mean(1)
        x = self.head_drop(x)
        return x if pre_logits else self.head(x)


torch.fx.wrap("resized_positions")  # it branches on the size of the feature map, so fx must record the call


def checkpoint_filter_fn(state_dict: dict[str, Tensor], model: Any) -> dict[str, Tensor]:
    """Interpolate the position tables of weights for a different image size."""
    out, cfg = dict(state_dict), getattr(model, "pretrained_cfg", None) or {}  # a PVT built directly has none
    height, width = cfg.get("input_size", (3, 0, 0))[1:]
    for i, (grid, info) in enumerate(zip(model.grids, model.feature_info, strict=False)):  # it may have been pruned
        if (key := f"pos_embed{i + 1}") in out:
            count = out[key].shape[1] - (i == model.last_stage)  # without the class token
            stated = (-(-height // info["reduction"]), -(-width // info["reduction"]))
            square = (math.isqrt(count), math.isqrt(count))
            grids = (stated, grid, square) if height != width else (grid, square)  # a square may be timm's default
            before = next((size for size in grids if math.prod(size) == count), None)
            out[key] = resized_positions(out[key], before, grid) if before else out[key]
    return out


def _pretrained(state_dict: dict[str, Tensor], model: nn.Module) -> dict[str, Tensor]:
    """Like `checkpoint_filter_fn`, and accept the weights of a plain PVT."""
    return add_silent_convolution(checkpoint_filter_fn(state_dict, model), model)


_FIRST_AND_LAST = {"first_conv": "patch_embed1.proj", "classifier": "head"}
_TOKENS = {"pool_size": None}  # as in timm's vision transformers: the last features are tokens
default_cfgs = generate_default_cfgs(
    {
        **{
            name: {**IMAGENET, **_FIRST_AND_LAST, **_TOKENS}
            for name in ("pvt_tiny", "pvt_small", "acmix_pvt_t", "acmix_pvt_s")
        },
        "acmix_pvt_pico": {**SMALL, **_TOKENS, "first_conv": "stem.0", "classifier": "head"},
    }
)


def _create(variant: str, pretrained: bool, defaults: dict[str, Any], kwargs: dict[str, Any]) -> PVT:
    stages = len(kwargs.get("depths", defaults["depths"]))
    # "getter" uses forward_intermediates, which returns NCHW.
    feature_cfg = {"out_indices": tuple(range(stages)), "feature_cls": "getter"}
    return build(PVT, variant, pretrained, feature_cfg, _pretrained, **{**defaults, **kwargs})  # type: ignore[return-value]


@register_model
def pvt_tiny(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Tiny: 13,229,288 parameters, 1.93 GMACs, 224-pixel images, 1000 classes. Published: 75.1 %."""
    return _create("pvt_tiny", pretrained, {"depths": DEPTHS["tiny"], "paths": "attention"}, kwargs)


@register_model
def pvt_small(pretrained: bool = False, **kwargs: Any) -> PVT:
    """PVT-Small: 24,485,864 parameters, 3.82 GMACs, 224-pixel images, 1000 classes. Published: 79.8 %."""
    return _create("pvt_small", pretrained, {"depths": DEPTHS["small"], "paths": "attention"}, kwargs)


@register_model
def acmix_pvt_t(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT-T, a reconstruction: 13,396,128 parameters, 2.02 GMACs, 224-pixel images,
    1000 classes. Published: 78.0 %."""
    return _create("acmix_pvt_t", pretrained, {"depths": DEPTHS["tiny"]}, kwargs)


@register_model
def acmix_pvt_s(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT-S, a reconstruction: 24,824,755 parameters, 3.97 GMACs, 224-pixel images,
    1000 classes. Published: 81.7 %."""
    return _create("acmix_pvt_s", pretrained, {"depths": DEPTHS["small"]}, kwargs)


@register_model
def acmix_pvt_pico(pretrained: bool = False, **kwargs: Any) -> PVT:
    """ACmix-PVT for 32-pixel images: 847,057 parameters, 25.3 MMACs, stages of two and three blocks, 10 classes.

    It averages over all positions instead of reading only the class token, so that the last convolution is used. As a
    segmentation encoder, it has depth 3; its feature maps have strides 4 and 8.
    """
    defaults = {
        "img_size": 32, "patch_size": 4, "depths": (2, 3), "embed_dims": (64, 128), "num_heads": (2, 4),
        "mlp_ratios": (4, 4), "reductions": (2, 1), "small_input": True, "global_pool": "avg", "drop_path_rate": 0.0,
    }  # fmt: skip
    return _create("acmix_pvt_pico", pretrained, defaults, kwargs)
