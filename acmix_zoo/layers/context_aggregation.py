"""ContextAggregation: the layer of Container, a learned mixture of attention and a depthwise convolution."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acmix_zoo.layers.argument_checks import check_dtype, check_heads, check_odd
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer
from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.layers.submodule_use import can_skip_call
from acmix_zoo.ops.backends.fused_attention import fused_attention
from acmix_zoo.ops.shift_conv import convolve
from acmix_zoo.ops.tracing import unflatten


@leaf
class ContextAggregation(TwoStageLayer):
    """Aggregate the values of other positions by `mix · attention + (1 − mix) · depthwise convolution`.

    In the words of the paper, every position takes a weighted sum over the others. The weights are a mixture of a
    dynamic affinity, which is computed from the input, and a static one, which is learned. Unlike in ACmix, the
    convolution reads the values only, and the attention is global.

    Args:
        in_channels, out_channels: numbers of input and output channels.
        heads: number of attention heads, a divisor of out_channels.
        kernel: side length of the static affinity, a depthwise convolution; odd.
        stride: stride of the queries and of the convolution. Keys and values are not subsampled.
        dilation: dilation of the convolution.
        dynamic: whether to use attention. Without it, the layer is a 1×1 and a depthwise convolution.

    Attributes:
        qkv: Linear(in_channels, 3·out_channels), or to out_channels if there is no attention.
        conv: the depthwise convolution.
        mix_logit: (1,), initialised as zero; `mix` is its sigmoid.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, ceil(H/stride), ceil(W/stride)).

    Source: "Container: Context Aggregation Network", NeurIPS 2021, and its released code (Apache-2.0), the source of
    the 5×5 kernel, the sigmoid and the biases.
    """

    STAGE_ONE = ("qkv.",)

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int,
        kernel: int = 5,
        stride: int = 1,
        dilation: int = 1,
        dynamic: bool = True,
    ) -> None:
        super().__init__()
        check_heads("ContextAggregation", "out_channels", out_channels, heads)
        check_odd("ContextAggregation", kernel=kernel)
        self.out_channels, self.heads, self.stride, self.dynamic = out_channels, heads, stride, dynamic
        self.qkv = nn.Linear(in_channels, (3 if dynamic else 1) * out_channels)
        padding = kernel // 2 * dilation
        self.conv = nn.Conv2d(out_channels, out_channels, kernel, stride, padding, dilation, groups=out_channels)
        if dynamic:
            self.mix_logit = nn.Parameter(torch.zeros(1))

    def forward(self, x: Tensor) -> Tensor:
        check_dtype("ContextAggregation", x, self.qkv)
        projections = self.qkv(x.permute(0, 2, 3, 1))  # (B, H, W, 3·out) or (B, H, W, out)
        *others, v = projections.split(self.out_channels, 3)
        convolution = self._convolve(v.permute(0, 3, 1, 2))  # (B, out, Ho, Wo)
        if not self.dynamic:
            return convolution
        q, k = others
        parts = (q[:, :: self.stride, :: self.stride], k, v)
        q, k, v = (unflatten(t.flatten(1, 2), 2, (self.heads, -1)).transpose(1, 2) for t in parts)  # (B, heads, L, d)
        attended = fused_attention(q, k, v).transpose(2, 3).flatten(1, 2)  # (B, out, Ho·Wo)
        attention = unflatten(attended, 2, convolution.shape[2:])  # (B, out, Ho, Wo)
        return torch.lerp(convolution, attention.to(convolution.dtype), self.mix_logit.sigmoid().to(convolution.dtype))

    def _convolve(self, v: Tensor) -> Tensor:
        if not can_skip_call(self.conv, nn.Conv2d):
            return self.conv(v)  # type: ignore[no-any-return]
        weight, bias, dilation = self.conv.weight, self.conv.bias, self.conv.dilation[0]
        return convolve(v, weight, bias, stride=self.stride, dilation=dilation, groups=self.out_channels)

    def stage_macs(self, x: Tensor) -> StageCounts:
        """Return the multiply-accumulates of both stages for an input (B, in_channels, H, W)."""
        b, channels, h, w = x.shape
        strided = -(-h // self.stride) * -(-w // self.stride)
        second = self.conv.weight[0].numel() + (2 * h * w if self.dynamic else 0)  # MACs per output element
        return StageCounts(b * h * w * channels * self.qkv.out_features, b * strided * second * self.out_channels)

    def extra_repr(self) -> str:
        return f"heads={self.heads}, stride={self.stride}, dynamic={self.dynamic}"
