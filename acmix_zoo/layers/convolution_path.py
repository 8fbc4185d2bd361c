"""The convolution path as a module: the mixing matrix and the kernels that start as shifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.ops.shift_conv import ConvFactors, conv_factors, shift_conv, shift_kernels


@leaf
class ShiftConv(nn.Module):
    """Mix the 3·heads projections of each head channel into kernel² maps, shift them, sum them.

    Its weights are plain parameters, not `nn.Conv2d`: the usual `model.apply(init)` loops look for that class, and one
    of them (the released ACmix-ResNet's own) overwrites the shifts, after which users report that training fails.

    Args:
        channels: output channels, a multiple of heads.
        heads: heads of the projections.
        kernel: odd side of the convolution.
        stride, dilation: of the convolution; padding keeps ceil(size / stride).
        bias: whether the mixing matrix has a bias (Swin's form has, the ResNet form has none).

    Shape:
        (B, H, W, d, 3·heads) → (B, ceil(H/stride), ceil(W/stride), d·heads), with d = channels/heads.
    """

    def __init__(
        self, channels: int, heads: int, kernel: int = 3, stride: int = 1, dilation: int = 1, bias: bool = False
    ) -> None:
        super().__init__()
        self.stride, self.dilation, self.kernel = stride, dilation, kernel
        self.fc_weight = nn.Parameter(torch.empty(kernel**2, 3 * heads))
        self.fc_bias = nn.Parameter(torch.empty(kernel**2)) if bias else None
        self.shift_weight = nn.Parameter(torch.empty(channels, kernel**2, kernel, kernel))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for the mixing matrix, shifts for the kernels."""
        bound = self.fc_weight.shape[1] ** -0.5
        nn.init.uniform_(self.fc_weight, -bound, bound)
        if self.fc_bias is not None:
            nn.init.uniform_(self.fc_bias, -bound, bound)
        with torch.no_grad():
            self.shift_weight.copy_(shift_kernels(self.shift_weight.shape[0], self.kernel))

    def forward(self, projections: Tensor, scale: Tensor | None = None) -> Tensor:
        """`scale` (one value) multiplies the result; it costs a pass over the kernels instead of one over the map."""
        shift = self.shift_weight if scale is None else self.shift_weight * scale
        return shift_conv(projections, self.fc_weight, shift, self.fc_bias, stride=self.stride, dilation=self.dilation)

    def factors(self, scale: Tensor | None = None) -> ConvFactors:
        """What `grouped_conv` needs (see `conv_factors`), times `scale`."""
        fc = self.fc_weight if scale is None else self.fc_weight * scale
        return conv_factors(fc, self.shift_weight)
