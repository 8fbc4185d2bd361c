"""AugmentedConv2d: a 3×3 convolution, some of whose output channels are computed by attention instead."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.layers.relative_attention import RelativeAttention


class AugmentedConv2d(nn.Module):
    """Attention-augmented convolution: concatenate a 3×3 convolution and global multi-head attention.

    With stride 2, the attention input is average-pooled (3×3, stride 2). `pool=True` adds one such pooling and
    upsamples the output bilinearly, because attention cost grows with the fourth power of the side length.

    Args:
        in_channels, out_channels: numbers of input and output channels.
        stride: 1 or 2.
        dilation: dilation of the convolution.
        heads: number of attention heads.
        key_ratio: channels of the queries and keys as a fraction of out_channels (κ in the paper). They are rounded
            down to a multiple of heads, and a head has at least 20 of them.
        value_ratio: output channels of the attention as a fraction of out_channels (υ), also rounded down, and at least
            one per head. The convolution computes the remaining channels.
        reach: see `RelativeAttention`.
        pool: whether the attention runs at half of the output's resolution.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, ceil(H/stride), ceil(W/stride)).

    Source: "Attention Augmented Convolutional Networks", ICCV 2019, sections 3.2 and 3.3.
    """

    MIN_KEY_CHANNELS = 20  # per head, as in the paper

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        stride: int = 1,
        dilation: int = 1,
        *,
        heads: int,
        key_ratio: float,
        value_ratio: float,
        reach: int,
        pool: bool = False,
    ) -> None:
        super().__init__()
        if stride not in (1, 2):
            raise ValueError(f"AugmentedConv2d: stride={stride} is not supported. Use 1 or 2")
        key_channels = heads * max(int(out_channels * key_ratio) // heads, self.MIN_KEY_CHANNELS)
        attended = heads * max(int(out_channels * value_ratio) // heads, 1)
        if attended >= out_channels:
            raise ValueError(
                f"AugmentedConv2d: value_ratio={value_ratio} and heads={heads} leave no channel of {out_channels} to "
                "the convolution. Use fewer heads or a smaller ratio"
            )
        self.halvings, self.pool = (stride == 2) + pool, pool
        self.conv = nn.Conv2d(in_channels, out_channels - attended, 3, stride, dilation, dilation, bias=False)
        self.attention = RelativeAttention(in_channels, key_channels, attended, heads=heads, reach=reach)
        self.proj = nn.Conv2d(attended, attended, 1, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        convolved, attended = self.conv(x), x  # (B, out − attended, Ho, Wo) and (B, in, H, W)
        for _ in range(self.halvings):
            attended = F.avg_pool2d(attended, 3, 2, 1, count_include_pad=False)
        attended = self.proj(self.attention(attended))  # (B, attended, Ho, Wo), or half of that size
        if self.pool:
            attended = F.interpolate(attended, size=convolved.shape[2:], mode="bilinear")
        return torch.cat([convolved, attended], 1)
