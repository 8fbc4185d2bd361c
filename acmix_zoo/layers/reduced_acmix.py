"""ReducedACmix: the ACmix layer of PVT, with attention to a reduced feature map and convolution at full resolution."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype, check_heads, check_odd, check_paths
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import can_skip_call
from acmix_zoo.ops.backends.fused_attention import fused_attention
from acmix_zoo.ops.tracing import ceil_div, is_exporting, unflatten
from acmix_zoo.ops.window_paths import WindowGeometry, WindowTensors, runs_native, window_paths


@leaf
class ReducedACmix(TwoStageLayer):
    """`alpha · proj(attention) + beta · convolution`, with one key and value for each reduction × reduction patch.

    `paths="attention"` is PVT's own layer (spatial-reduction attention) and has its parameter names. With the
    convolution, the layer is a **reconstruction**: the authors published the cost of ACmix-PVT, but not its design. See
    docs/reconstructions.md. The convolution needs q, k and v at every position, so all positions of a patch share its k
    and v.

    Args:
        dim: channels, a multiple of heads.
        heads: number of attention heads.
        reduction: side length of the patches; 1 for no reduction.
        kernel_conv: side length of the convolution; odd.
        paths: "both", or the name of one path to use it alone.
        proj_drop: dropout rate after the sum.

    Shape:
        (B, prefix + H·W, dim) and the size (H, W) of the feature map → (B, prefix + H·W, dim). Prefix tokens, such as
        PVT's class token, come first and are only possible without reduction. The convolution ignores them. Feature
        maps are padded with zeros to whole patches.

    Source: "Pyramid Vision Transformer", ICCV 2021, and its released code (the attention); ACmix, CVPR 2022.
    """

    STAGE_ONE = ("q.", "kv.", "sr.", "norm.")

    def __init__(
        self,
        dim: int,
        heads: int,
        reduction: int = 1,
        *,
        kernel_conv: int = 3,
        paths: Paths = "both",
        proj_drop: float = 0.0,
    ) -> None:
        super().__init__()
        check_heads("ReducedACmix", "dim", dim, heads)
        check_paths("ReducedACmix", paths)
        check_odd("ReducedACmix", kernel_conv=kernel_conv)
        self.dim, self.heads, self.reduction, self.paths = dim, heads, reduction, paths
        self.q = nn.Linear(dim, dim)
        self.kv = nn.Linear(dim, 2 * dim)
        if reduction > 1:
            self.sr = nn.Conv2d(dim, dim, reduction, reduction)
            self.norm = nn.LayerNorm(dim)
        if paths != "convolution":
            self.proj = nn.Linear(dim, dim)
        if paths != "attention":
            self.shift_conv = ShiftConv(dim, heads, kernel_conv, bias=True)
        if paths == "both":
            self.alpha = nn.Parameter(torch.full((1,), 0.5))
            self.beta = nn.Parameter(torch.full((1,), 0.5))
        self.proj_drop = nn.Dropout(proj_drop)

    def forward(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        check_dtype("ReducedACmix", x, self.q)
        prefix = x.shape[1] - size[0] * size[1]
        q = unflatten(self.q(x), 2, (self.heads, -1))  # (B, L, heads, d)
        reduced = self.reduced_tokens(x, size)  # (B, L′, dim)
        k, v = unflatten(self.kv(reduced), 2, (2, self.heads, -1)).unbind(2)  # 2 × (B, L′, heads, d)
        out = None
        if self.paths != "attention":
            out = F.pad(self._convolution(q[:, prefix:], k[:, prefix:], v[:, prefix:], size), (0, 0, prefix, 0))
        if self.paths != "convolution":
            queries, keys, values = (t.transpose(1, 2) for t in (q, k, v))  # (B, heads, L or L′, d)
            heads = fused_attention(queries, keys, values)  # (B, heads, L, d)
            attention = self.proj(heads.transpose(1, 2).flatten(2))  # (B, L, dim)
            out = attention if out is None else torch.addcmul(out, attention, self.alpha.to(attention.dtype))
        return self.proj_drop(out)  # type: ignore[no-any-return]

    def stage_macs(self, x: Tensor, size: tuple[int, int]) -> StageCounts:
        """Return the multiply-accumulates of both stages for tokens (B, prefix + H·W, dim) of a feature map (H, W)."""
        b, length, dim = x.shape
        (h, w), side = size, self.reduction
        keys = -(-h // side) * -(-w // side) if side > 1 else length
        first = length * dim**2 + keys * 2 * dim**2 + (keys * side**2 * dim**2 if side > 1 else 0)
        second = 0
        if self.paths != "convolution":
            second += 2 * length * keys * dim
        if self.paths != "attention":
            second += self.shift_conv.macs(h, w)
        return StageCounts(b * first, b * second)

    def reduced_tokens(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """Return the tokens that keys and values are projected from, one per patch: (B, L, dim) → (B, L′, dim).

        L′ is ceil(H/reduction)·ceil(W/reduction). Without reduction, the tokens are returned unchanged.
        """
        if self.reduction == 1:
            return x
        h, w = size
        bottom, right = (ceil_div(n, self.reduction) * self.reduction - n for n in (h, w))
        maps = unflatten(x.transpose(1, 2), 2, size)  # (B, dim, H, W)
        maps = F.pad(maps, (0, right, 0, bottom))
        return self.norm(self.sr(maps).flatten(2).transpose(1, 2))  # type: ignore[no-any-return]

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """Run the convolution path, scaled by beta: q (B, H·W, heads, d), k and v (B, L′, heads, d) → (B, H·W, dim)."""
        h, w = size
        maps = [unflatten(q, 1, size)]  # (B, H, W, heads, d)
        for t in (k, v):
            grid = (ceil_div(h, self.reduction), ceil_div(w, self.reduction))
            patches = unflatten(t, 1, grid)  # (B, H′, W′, heads, d)
            maps.append(_repeat(_repeat(patches, 1, self.reduction, h), 2, self.reduction, w))
        projections = torch.cat(maps, 3)  # (B, H, W, 3·heads, d)
        scale = self.beta if self.paths == "both" else None
        if can_skip_call(self.shift_conv, ShiftConv) and runs_native(projections, *self.shift_conv.parameters()):
            geometry = WindowGeometry(self.heads, (1, w), (0, 0), size, conv_is_rolled=False, heads_first=True)
            fc, kernels = self.shift_conv.mixing_and_kernels(scale)
            out = window_paths(projections.flatten(3), WindowTensors(fc=fc, kernels=kernels), geometry)[1]
            return out.view(len(q), h * w, self.dim)
        return self.shift_conv(projections.transpose(3, 4), scale).flatten(1, 2)  # type: ignore[no-any-return]


def _repeat(x: Tensor, dim: int, times: int, length: int) -> Tensor:
    """Repeat each position along `dim`, and cut the result to `length` positions."""
    if times == 1:
        return x
    if is_exporting():  # a narrowed view would fix whether sizes are a multiple of `times`
        return x.index_select(dim, torch.arange(length, device=x.device) // times)
    copies = [-1] * (x.dim() + 1)
    copies[dim + 1] = times
    return x.unsqueeze(dim + 1).expand(copies).flatten(dim, dim + 1).narrow(dim, 0, length)
