"""RelativeAttention: global attention with learned relative positions, as in BoTNet and AA-ResNet."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import check_dtype, check_heads
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.ops.tracing import unflatten


@leaf
class RelativeAttention(TwoStageLayer):
    """Global multi-head self-attention whose logits depend on the content and on the relative position of each key.

    The logit of query i and key j is `q_i · (k_j + rows[y_j − y_i] + columns[x_j − x_i]) / sqrt(d)`. The two tables are
    shared by the heads. Distances beyond `reach` share the outermost entry, so inputs of any size work. Up to reach + 1
    pixels per side, the layer computes the same as timm's `BottleneckAttn`, which is built for one input size.

    Args:
        in_channels: input channels.
        key_channels: channels of the queries and keys of all heads together, a multiple of heads.
        out_channels: channels of the values, and of the output, a multiple of heads.
        heads: number of attention heads.
        reach: the largest distance in pixels, in either direction, with an entry of its own in the tables.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, H, W).

    Source: "Attention Augmented Convolutional Networks", ICCV 2019, section 3.1; the same attention is in "Bottleneck
    Transformers for Visual Recognition", CVPR 2021. The projections have no bias, as in timm.
    """

    STAGE_ONE = ("qkv.",)

    def __init__(self, in_channels: int, key_channels: int, out_channels: int, *, heads: int, reach: int) -> None:
        super().__init__()
        check_heads("RelativeAttention", "key_channels", key_channels, heads)
        check_heads("RelativeAttention", "out_channels", out_channels, heads)
        if reach < 0:
            raise ValueError(
                f"RelativeAttention: reach={reach} is negative. Expected a distance in pixels. Use 0 or more"
            )
        self.heads, self.reach = heads, reach
        self.key_channels, self.out_channels = key_channels, out_channels
        self.qkv = nn.Linear(in_channels, 2 * key_channels + out_channels, bias=False)
        self.rows = nn.Parameter(torch.empty(2 * reach + 1, key_channels // heads))
        self.columns = nn.Parameter(torch.empty(2 * reach + 1, key_channels // heads))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Initialise as timm's `BottleneckAttn` does: projections keep the variance, tables have that of 1/d."""
        nn.init.trunc_normal_(self.qkv.weight, std=self.qkv.in_features**-0.5)
        for table in (self.rows, self.columns):
            nn.init.trunc_normal_(table, std=table.shape[1] ** -0.5)

    def forward(self, x: Tensor) -> Tensor:
        check_dtype("RelativeAttention", x, self.qkv)
        h, w = x.shape[2:]
        projections = self.qkv(x.permute(0, 2, 3, 1)).flatten(1, 2)  # (B, H·W, 2·key + out)
        parts = projections.split((self.key_channels, self.key_channels, self.out_channels), 2)
        q, k, v = (unflatten(t, 2, (self.heads, -1)).transpose(1, 2) for t in parts)  # 3 × (B, heads, H·W, d)
        q = q * q.shape[-1] ** -0.5
        logits = unflatten(unflatten(q @ k.transpose(2, 3), 3, (h, w)), 2, (h, w))  # (B, heads, H, W, H, W)
        queries = unflatten(q, 2, (h, w))  # (B, heads, H, W, d)
        vertical = torch.einsum("bnyxd,ykd->bnyxk", queries, self._entries(self.rows, h))  # (B, heads, H, W, H)
        horizontal = torch.einsum("bnyxd,xkd->bnyxk", queries, self._entries(self.columns, w))  # (B, heads, H, W, W)
        logits = logits + vertical.unsqueeze(5) + horizontal.unsqueeze(4)
        weights = logits.flatten(4).flatten(2, 3).softmax(3)  # (B, heads, H·W, H·W)
        out = weights.to(v.dtype) @ v  # (B, heads, H·W, d)
        return unflatten(out.transpose(2, 3).flatten(1, 2), 2, (h, w))

    def _entries(self, table: Tensor, size: Any) -> Tensor:
        """Return the entries of a table for all pairs of `size` positions: → (size, size, d), by query and key."""
        positions = torch.arange(size, device=table.device)
        distances = positions - positions.unsqueeze(1)  # (size, size): that of the key minus that of the query
        return table[distances.clamp(-self.reach, self.reach) + self.reach]

    def stage_macs(self, x: Tensor) -> StageCounts:
        """Return the multiply-accumulates of both stages for an input (B, in_channels, H, W).

        Stage II includes the product of each query with the entries for all rows and columns.
        """
        b, channels, h, w = x.shape
        first = channels * (2 * self.key_channels + self.out_channels)  # of one position
        second = h * w * (self.key_channels + self.out_channels) + (h + w) * self.key_channels
        return StageCounts(b * h * w * first, b * h * w * second)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, key_channels={self.key_channels}, reach={self.reach}"
