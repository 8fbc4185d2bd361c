"""ShiftConv: the convolution path, which mixes the projections and convolves them with kernels that start as shifts."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acmix_zoo.layers.fx_leaf import leaf
from acmix_zoo.ops.shift_conv import ConvFactors, conv_factors, shift_conv, shift_kernels


def shift_macs(size: tuple[int, int], channels: int, heads: int, kernel: int, stride: int) -> int:
    """Return the multiply-accumulates for one image: mixing at full size, shift and sum at the strided size.

    Args:
        size: height and width of the feature map.
        channels, heads, kernel, stride: as in `ShiftConv`.
    """
    height, width = size
    strided = -(-height // stride) * -(-width // stride)
    return channels // heads * (height * width * kernel**2 * 3 * heads + strided * heads * kernel**4)


@leaf
class ShiftConv(nn.Module):
    """Mix the 3·heads projections of each head channel into kernel² maps, shift these maps, and sum them.

    The weights are plain parameters rather than an `nn.Conv2d`, because initialisation loops (`model.apply(init)`) look
    for that class. The one in the released ACmix-ResNet overwrites the shifts, after which users report that training
    does not converge.

    Args:
        channels: output channels, a multiple of heads.
        heads: number of heads of the projections.
        kernel: side length of the convolution; odd.
        stride, dilation: of the convolution. The output has ceil(size / stride) pixels per side.
        bias: whether the mixing matrix has a bias. It does in the Swin and PVT layers, but not in `ACmix2d`.

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
        """Initialise the mixing matrix as PyTorch does a 1×1 convolution, and the kernels as shifts."""
        bound = self.fc_weight.shape[1] ** -0.5
        nn.init.uniform_(self.fc_weight, -bound, bound)
        if self.fc_bias is not None:
            nn.init.uniform_(self.fc_bias, -bound, bound)
        with torch.no_grad():
            self.shift_weight.copy_(shift_kernels(self.shift_weight.shape[0], self.kernel))

    def forward(self, projections: Tensor, scale: Tensor | None = None) -> Tensor:
        """Return the convolution times `scale` (one value), which is multiplied into the kernels."""
        shift = self.shift_weight if scale is None else self.shift_weight * scale
        return shift_conv(projections, self.fc_weight, shift, self.fc_bias, stride=self.stride, dilation=self.dilation)

    def factors(self, scale: Tensor | None = None) -> ConvFactors:
        """Return the tensors that `grouped_conv` needs, times `scale`. See `conv_factors`."""
        fc = self.fc_weight if scale is None else self.fc_weight * scale
        return conv_factors(fc, self.shift_weight)

    def mixing_and_kernels(self, scale: Tensor | None = None) -> tuple[Tensor, Tensor]:
        """Return what `window_paths` needs: the mixing matrix with its bias as the last column, and kernels · scale."""
        bias = self.fc_weight.new_zeros(len(self.fc_weight)) if self.fc_bias is None else self.fc_bias
        kernels = self.shift_weight if scale is None else self.shift_weight * scale
        return torch.cat((self.fc_weight, bias.unsqueeze(1)), 1), kernels  # (k², 3·heads + 1), (channels, k², k, k)

    def macs(self, height: int, width: int) -> int:
        """Return the multiply-accumulates for one image, see `shift_macs`."""
        heads = self.fc_weight.shape[1] // 3
        return shift_macs((height, width), len(self.shift_weight), heads, self.kernel, self.stride)

    def definition_macs(self, projections: Tensor) -> int:
        """Return the multiply-accumulates for projections (B, H, W, d, 3·heads)."""
        b, h, w = projections.shape[:3]
        return b * self.macs(h, w)
