"""ACmix2d: the drop-in layer, used where a 3×3 convolution stands."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from acmix_zoo.layers.checks import Paths, check_heads, check_paths
from acmix_zoo.layers.shift_conv import ShiftConv
from acmix_zoo.ops.acmix import Geometry, acmix, mix
from acmix_zoo.ops.attention_forms import positions
from acmix_zoo.ops.derivatives import is_channels_last
from acmix_zoo.ops.precision import autocast_off


class ACmix2d(nn.Module):
    """Self-attention and convolution on the same projections: `alpha · attention + beta · convolution`.

    Stands where `nn.Conv2d(in_channels, out_channels, 3, stride, padding=1)` stands. The map is projected once to q, k
    and v. The attention path lets every position attend to the kernel_att × kernel_att window around it (the border is
    continued by reflection); the convolution path mixes the same projections and convolves them with kernels that
    start as shifts. Keeps the input's dtype and memory format; any height and width down to 1×1.

    Args:
        in_channels, out_channels: channels in and out; out_channels is a multiple of heads.
        heads: attention heads; the convolution path's groups have as many outputs.
        kernel_att: odd side of the attention window.
        kernel_conv: odd side of the convolution.
        stride: queries and convolution are subsampled by it; keys and values are not.
        dilation: of the attention window and of the convolution.
        paths: "both", or one path alone on the same projections (for comparisons; it then has no alpha and beta).

    Parameters:
        qkv: Linear(in_channels, 3·out_channels) applied to every pixel; its rows are ordered (out_channels/heads,
            {q, k, v}, heads), so that the convolution path reads its groups without a copy.
        position_weight (d, 2), position_bias (d): position encoding of the coordinates (x, y) in −1 … 1. The bias
            cancels in the softmax: it is kept so that parameter counts and the authors' checkpoints agree, never
            changes the output, and receives a gradient of exactly zero.
        shift_conv: the convolution path, see `ShiftConv`.
        alpha, beta: (1,), one half each at the start.

    Shape:
        (B, in_channels, H, W) → (B, out_channels, ceil(H/stride), ceil(W/stride)).

    Raises:
        ValueError: out_channels not divisible by heads; an even kernel; an input that is not (B, in_channels, H, W).

    Source: "On the Integration of Self-Attention and Convolution", CVPR 2022, and the ResNet form of its released code.
    """

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        *,
        heads: int = 4,
        kernel_att: int = 7,
        kernel_conv: int = 3,
        stride: int = 1,
        dilation: int = 1,
        paths: Paths = "both",
    ) -> None:
        super().__init__()
        for name, value in dict(
            in_channels=in_channels, out_channels=out_channels, heads=heads, kernel_att=kernel_att,
            kernel_conv=kernel_conv, stride=stride, dilation=dilation,
        ).items():  # fmt: skip
            if isinstance(value, bool) or not isinstance(value, int) or value < 1:
                raise ValueError(f"ACmix2d: {name} must be a positive integer, got {value!r}")
        check_heads("ACmix2d", "out_channels", out_channels, heads)
        for name, value in (("kernel_att", kernel_att), ("kernel_conv", kernel_conv)):
            if value % 2 == 0:
                raise ValueError(
                    f"ACmix2d: {name}={value} is even, so its window has no centre; use {value - 1} or {value + 1}"
                )
        check_paths("ACmix2d", paths)
        self.in_channels, self.out_channels, self.heads = in_channels, out_channels, heads
        self.kernel_att, self.kernel_conv, self.stride, self.dilation = kernel_att, kernel_conv, stride, dilation
        self.paths: Paths = paths

        self.qkv = nn.Linear(in_channels, 3 * out_channels)
        if paths != "convolution":
            self.position_weight = nn.Parameter(torch.empty(out_channels // heads, 2))
            self.position_bias = nn.Parameter(torch.empty(out_channels // heads))
        if paths != "attention":
            self.shift_conv = ShiftConv(out_channels, heads, kernel_conv, stride, dilation)
        if paths == "both":
            self.alpha = nn.Parameter(torch.empty(1))
            self.beta = nn.Parameter(torch.empty(1))
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """PyTorch's default for the projections, shifts for the convolution, one half for alpha and beta."""
        self.qkv.reset_parameters()
        if self.paths != "convolution":
            bound = 2**-0.5  # of a 1×1 convolution with two inputs
            nn.init.uniform_(self.position_weight, -bound, bound)
            nn.init.uniform_(self.position_bias, -bound, bound)
        if self.paths != "attention":
            self.shift_conv.reset_parameters()
        if self.paths == "both":
            nn.init.constant_(self.alpha, 0.5)
            nn.init.constant_(self.beta, 0.5)

    def forward(self, x: Tensor) -> Tensor:
        if x.dim() != 4 or x.shape[1] != self.in_channels:
            raise ValueError(f"ACmix2d: expected an input of (B, {self.in_channels}, H, W), got {tuple(x.shape)}")
        pe = fc = kernels = alpha = None
        if self.paths != "convolution":
            pe = positions(self.position_weight, *x.shape[2:])
            if torch.is_grad_enabled():
                pe = pe + 0 * self.position_bias  # its gradient is zero, not missing
        if self.paths != "attention":
            fc, kernels = self.shift_conv.factors(self.beta if self.paths == "both" else None)
        if self.paths == "both":
            alpha = self.alpha
        mixing, geometry = (
            (pe, fc, kernels, alpha, None),
            Geometry(self.heads, self.kernel_att, self.stride, self.dilation),
        )
        qkv, device = self.qkv, x.device.type
        if type(qkv) is not nn.Linear or qkv._forward_hooks or qkv._forward_pre_hooks:
            out = mix(qkv(x.permute(0, 2, 3, 1)), mixing, geometry)  # someone's own projection: it must be called
        elif torch.amp.is_autocast_available(device) and torch.is_autocast_enabled(device):
            # Cast once, here: a chunk that is computed again for its gradient must not come out in another dtype.
            dtype = torch.get_autocast_dtype(device)
            with autocast_off(x):
                out = acmix(x.to(dtype), qkv.weight.to(dtype), qkv.bias.to(dtype), mixing, geometry)
        else:
            out = acmix(x, qkv.weight, qkv.bias, mixing, geometry)
        return out if is_channels_last(x) else out.contiguous()

    def __prepare_scriptable__(self) -> nn.Module:
        raise TypeError("ACmix2d: torch.jit.script is deprecated and not supported; use torch.compile or torch.export")

    def extra_repr(self) -> str:
        return (
            f"{self.in_channels}, {self.out_channels}, heads={self.heads}, kernel_att={self.kernel_att}, "
            f"kernel_conv={self.kernel_conv}, stride={self.stride}"
            + (f", dilation={self.dilation}" if self.dilation != 1 else "")
            + (f", paths={self.paths!r}" if self.paths != "both" else "")
        )
