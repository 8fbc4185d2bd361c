"""Container: context aggregation, a learned mixture of attention and depthwise convolution.

Source: "Container: Context Aggregation Network", NeurIPS 2021. We have read its abstract and the released code of
Container-Light (allenai/container, Apache-2.0): models.py for depths, widths, patches, norms and the mixture, and
README.md for 21M parameters and 82.3 %. The paper states 20M, 3.2G and 82.0 % for an earlier version whose sizes are
not in that code; see docs/neighbours.md. `container_pico` is our addition for 32-pixel images. It has the layer in the
middle of the bottlenecks of `acmix_resnet_pico`, with attention in all stages, as in the paper's heavier network.
"""

from __future__ import annotations

from typing import Any

from timm.layers import DropPath, Mlp, calculate_drop_path_rates
from torch import Tensor, nn

from acmix_zoo.layers import ContextAggregation
from acmix_zoo.layers.argument_checks import check_dtype
from acmix_zoo.models.backbone import MapBackbone, per_stage
from acmix_zoo.models.pvt_tokens import PatchEmbed
from acmix_zoo.models.registry import IMAGENET, build, generate_default_cfgs, register_model
from acmix_zoo.models.resnet_trunk import PICO, PICO_CFG, ResNetTrunk, Site, create_resnet

__all__ = ["Container", "ContainerResNet"]


class Block(nn.Module):
    """A depthwise 3×3 convolution for the positions, the aggregation, and an MLP, each with residual: same shape."""

    def __init__(self, dim: int, mlp_ratio: float, drop_path: float, heads: int, dynamic: bool) -> None:
        super().__init__()
        self.pos_embed = nn.Conv2d(dim, dim, 3, padding=1, groups=dim)
        self.norm1 = nn.BatchNorm2d(dim)
        self.aggregate = ContextAggregation(dim, dim, heads=heads, dynamic=dynamic)
        self.proj = nn.Conv2d(dim, dim, 1)
        self.norm2 = nn.BatchNorm2d(dim)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), use_conv=True)
        self.drop_path = DropPath(drop_path) if drop_path else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        x = x + self.pos_embed(x)
        x = x + self.drop_path(self.proj(self.aggregate(self.norm1(x))))
        return x + self.drop_path(self.mlp(self.norm2(x)))  # type: ignore[no-any-return]


class Container(MapBackbone):
    """Container-Light, with timm's model interface: attention in the last stage only, where the feature maps are small.

    Args:
        depths, embed_dims, mlp_ratios: blocks, channels and ratio of the MLP of each stage.
        heads: number of attention heads.
        patch_size: side length of the patches of the first stage. Those of the other stages are 2×2.
        in_chans, num_classes, global_pool, drop_rate, drop_path_rate: as in timm.

    Shape: (B, in_chans, H, W) → (B, num_classes); any height and width.
    """

    NO_WEIGHT_DECAY = r"mix_logit$"

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (3, 4, 8, 3),
        embed_dims: tuple[int, ...] = (64, 128, 320, 512),
        mlp_ratios: tuple[float, ...] = (8, 8, 4, 4),
        heads: int = 16,
        patch_size: int = 4,
        in_chans: int = 3,
        num_classes: int = 1000,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
    ) -> None:
        super().__init__()
        self.in_chans = in_chans
        drop_path: Any = calculate_drop_path_rates(drop_path_rate, list(depths), stagewise=True)  # [stage][block]
        inputs, patch, self.feature_info = in_chans, patch_size, []
        stages = per_stage("Container", depths=depths, embed_dims=embed_dims, mlp_ratios=mlp_ratios)
        for i, (depth, dim, mlp_ratio) in enumerate(stages):
            dynamic = i == len(depths) - 1
            blocks = [Block(dim, mlp_ratio, drop_path[i][j], heads, dynamic) for j in range(depth)]
            self.add_module(f"patch_embed{i + 1}", PatchEmbed(inputs, dim, patch))
            self.add_module(f"blocks{i + 1}", nn.Sequential(*blocks))
            self.feature_info.append({"num_chs": dim, "reduction": patch_size * 2**i, "module": f"blocks{i + 1}"})
            inputs, patch = dim, 2
        self.norm = nn.BatchNorm2d(inputs)
        self.num_features = inputs
        self.make_head(num_classes, global_pool, drop_rate)
        for module in self.modules():  # convolutions keep PyTorch's initialisation, as in the released code
            if isinstance(module, nn.Linear):
                nn.init.trunc_normal_(module.weight, std=0.02)
                nn.init.zeros_(module.bias)

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        fine = [(r"^patch_embed(\d+)", (0,)), (r"^blocks(\d+)\.(\d+)", None), (r"^norm", (99999,))]
        return {"stem": r"^patch_embed1", "blocks": r"^(?:patch_embed|blocks)(\d+)" if coarse else fine}

    def run_stage(self, i: int, x: Tensor) -> Tensor:
        """Patches and blocks: (B, C, H, W) → (B, dim, H/patch, W/patch)."""
        if i == 0:
            check_dtype("Container", x, self.get_submodule("patch_embed1.proj"))
        x = self.get_submodule(f"patch_embed{i + 1}")(x).permute(0, 3, 1, 2)  # (B, dim, H/patch, W/patch)
        return self.run_blocks(self.get_submodule(f"blocks{i + 1}"), x)

    def normalise(self, x: Tensor) -> Tensor:
        return self.norm(x)  # type: ignore[no-any-return]

    def drop_stage(self, i: int) -> None:
        delattr(self, f"patch_embed{i + 1}")
        delattr(self, f"blocks{i + 1}")


class ContainerResNet(ResNetTrunk):
    """ResNet of bottlenecks with context aggregation, with timm's model interface.

    Args:
        heads, kernel: arguments of `ContextAggregation`.
        trunk: arguments of `ResNetTrunk`.
    """

    NO_WEIGHT_DECAY = r"mix_logit$"

    def __init__(self, *, heads: int = 4, kernel: int = 5, **trunk: Any) -> None:
        def middle(site: Site) -> nn.Module:
            return ContextAggregation(
                site.width, site.width, heads=heads, kernel=kernel, stride=site.stride, dilation=site.dilation
            )

        super().__init__(middle, **trunk)


default_cfgs = generate_default_cfgs(
    {
        "container_light": {**IMAGENET, "first_conv": "patch_embed1.proj", "classifier": "fc"},
        "container_pico": PICO_CFG,
    }
)


@register_model
def container_light(pretrained: bool = False, **kwargs: Any) -> Container:
    """Container-Light: 20,633,643 parameters, 3.85 GMACs, 224-pixel images, 1000 classes. Published: 82.3 %."""
    feature_cfg = {"out_indices": tuple(range(len(kwargs.get("depths", (3, 4, 8, 3))))), "feature_cls": "getter"}
    return build(Container, "container_light", pretrained, feature_cfg, **kwargs)  # type: ignore[return-value]


@register_model
def container_pico(pretrained: bool = False, **kwargs: Any) -> ContainerResNet:
    """Container for 32-pixel images: 627,424 parameters, 9.66 MMACs, three stages of two bottlenecks, 10 classes."""
    return create_resnet(ContainerResNet, "container_pico", pretrained, PICO, kwargs)
