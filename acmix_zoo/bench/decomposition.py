"""The observation behind ACmix as runnable code: a k×k convolution is k² projections, shifted and summed.

    conv(x)(i) = Σ_{p,q} K[p, q] · x(i + (p, q) − k//2)  =  Σ_{p,q} Shift(K[p, q] · x, by k//2 − (p, q))

Stage I multiplies the feature map by the k² matrices K[p, q]. Each of them is a 1×1 convolution. Stage II shifts every
result by its offset and sums them. Source: ACmix, CVPR 2022, section 3.1, and figure 3 for the three ways to shift.
docs/decomposition.md explains it with a figure.
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.ops.shift_conv import shift_kernels

Shift = Literal["tensor", "frozen", "learnable"]


class DecomposedConv2d(nn.Module):
    """`nn.Conv2d(in_channels, out_channels, kernel, padding=kernel // 2)` in two stages, for teaching. It is slower.

    Args:
        in_channels: input channels.
        out_channels: output channels.
        kernel: odd side of the kernel.
        shift: how stage II shifts the k² maps of every output channel.
            "tensor": add slices of the padded feature maps one after the other.
            "frozen": use one grouped convolution whose kernels are the k² shifts, which are not trained.
            "learnable": use the same convolution with kernels that are initialised as shifts and then trained. This is
            what ACmix does, on fewer maps.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, H, W).

    Raises:
        ValueError: unknown shift, or an even kernel.
    """

    def __init__(self, in_channels: int, out_channels: int, kernel: int = 3, *, shift: Shift = "tensor") -> None:
        super().__init__()
        if shift not in get_args(Shift):
            raise ValueError(f"DecomposedConv2d: unknown shift {shift!r}. Expected one of {', '.join(get_args(Shift))}")
        if kernel % 2 == 0:
            raise ValueError(f"DecomposedConv2d: kernel={kernel} is even. Expected an odd size. Use {kernel + 1}")
        self.kernel, self.out_channels, self.shift = kernel, out_channels, shift
        self.projections = nn.Conv2d(in_channels, out_channels * kernel**2, 1, bias=False)  # rows ordered (out, k²)
        self.bias = nn.Parameter(torch.zeros(out_channels))
        self.shifts = nn.Parameter(shift_kernels(out_channels, kernel)) if shift == "learnable" else None

    def init_non_persistent_buffers(self) -> None:
        """Compute the frozen kernels, which are not stored in checkpoints. timm's loaders call this."""
        if self.shift == "frozen":
            self.frozen = shift_kernels(self.out_channels, self.kernel).to(self.bias)

    @classmethod
    @torch.no_grad()
    def from_conv(cls, conv: nn.Conv2d, shift: Shift) -> DecomposedConv2d:
        """Return a module that computes the same as `conv`, which needs an odd square kernel, stride 1, one group and
        zero padding that keeps the size."""
        module = cls(conv.in_channels, conv.out_channels, conv.kernel_size[0], shift=shift)
        rows = conv.weight.flatten(2).transpose(1, 2).flatten(0, 1)  # (out·k², in)
        module.projections.weight.copy_(rows.unflatten(1, (-1, 1, 1)))
        if conv.bias is not None:
            module.bias.copy_(conv.bias)
        return module.to(conv.weight)

    def forward(self, x: Tensor) -> Tensor:
        maps = self.projections(x)  # (B, out·k², H, W)
        if self.shift == "tensor":
            return sum(self.shift_maps(maps)) + self.bias[:, None, None]
        # Compute the frozen kernels at every call. As a buffer outside the checkpoint they would be lost on "meta".
        kernels = self.shifts if self.shifts is not None else shift_kernels(self.out_channels, self.kernel).to(maps)
        return F.conv2d(maps, kernels, self.bias, padding=self.kernel // 2, groups=self.out_channels)

    def shift_maps(self, maps: Tensor) -> list[Tensor]:
        """Shift each of the k² maps of every output channel by its offset, filling up with zeros.

        Shape:
            (B, out·k², H, W) → k² × (B, out, H, W).
        """
        h, w = maps.shape[2:]
        padded = F.pad(maps.unflatten(1, (self.out_channels, -1)), (self.kernel // 2,) * 4)  # (B, out, k², H′, W′)
        offsets = [divmod(m, self.kernel) for m in range(self.kernel**2)]
        return [padded[:, :, m, y : y + h, x : x + w] for m, (y, x) in enumerate(offsets)]
