"""ReducedACmix: the PVT form. Attention to a reduced map, and a convolution of full resolution, on the same q, k, v."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import Paths, check_dtype, check_heads, check_odd, check_paths
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.ops.backends.fused_attention import fused_attention
from acmix_zoo.ops.tracing import ceil_div, is_exporting, unflatten


@leaf
class ReducedACmix(nn.Module):
    """`alpha · proj(attention) + beta · convolution`, keys and values taken from every reduction × reduction patch.

    `paths="attention"` is PVT's own layer (spatial-reduction attention), with its parameters' names. With the
    convolution it is a **reconstruction**: the authors published what ACmix-PVT costs, not what it is; see
    docs/reconstructions.md. The convolution needs q, k and v at every position; k and v exist for each patch, and every
    position of the patch has them.

    Args:
        dim: channels, a multiple of heads.
        heads: attention heads.
        reduction: side of the patches; 1 for none.
        kernel_conv: odd side of the convolution.
        paths: "both", or one path alone.
        proj_drop: dropout after the sum.

    Shape:
        (B, prefix + H·W, dim) and the map's (H, W) → (B, prefix + H·W, dim). Prefix tokens (PVT's class token) stand
        first, and only without reduction; the convolution leaves them out. Maps that are no multiple of the patches are
        padded with zeros.

    Source: "Pyramid Vision Transformer", ICCV 2021, and its released code (the attention); ACmix, CVPR 2022.
    """

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
        reduced = self.norm(self._reduced(x, size)) if self.reduction > 1 else x  # (B, L′, dim)
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

    def _reduced(self, x: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H·W, dim) → (B, ceil(H/reduction)·ceil(W/reduction), dim)."""
        h, w = size
        bottom, right = (ceil_div(n, self.reduction) * self.reduction - n for n in (h, w))
        maps = unflatten(x.transpose(1, 2), 2, size)  # (B, dim, H, W)
        maps = F.pad(maps, (0, right, 0, bottom))
        return self.sr(maps).flatten(2).transpose(1, 2)  # type: ignore[no-any-return]

    def _convolution(self, q: Tensor, k: Tensor, v: Tensor, size: tuple[int, int]) -> Tensor:
        """(B, H·W, heads, d) and twice (B, L′, heads, d) → (B, H·W, dim), times beta."""
        h, w = size
        maps = [unflatten(q, 1, size)]  # (B, H, W, heads, d)
        for t in (k, v):
            grid = (ceil_div(h, self.reduction), ceil_div(w, self.reduction))
            patches = unflatten(t, 1, grid)  # (B, H′, W′, heads, d)
            maps.append(_spread(_spread(patches, 1, self.reduction, h), 2, self.reduction, w))
        projections = torch.cat(maps, 3).transpose(3, 4)  # (B, H, W, d, 3·heads)
        return self.shift_conv(projections, self.beta if self.paths == "both" else None).flatten(1, 2)  # type: ignore[no-any-return]


def _spread(x: Tensor, dim: int, times: int, length: int) -> Tensor:
    """Each position of `dim` `times` over, cut to `length`."""
    if times == 1:
        return x
    if is_exporting():  # a narrowed view would fix whether maps are a multiple of `times`
        return x.index_select(dim, torch.arange(length, device=x.device) // times)
    copies = [-1] * (x.dim() + 1)
    copies[dim + 1] = times
    return x.unsqueeze(dim + 1).expand(copies).flatten(dim, dim + 1).narrow(dim, 0, length)
