"""The convolution path of ACmix: a k×k convolution as projections, shifts and a sum.

Each of the d channels of a head has 3·heads projected maps. One small matrix `fc`, shared by all d groups, mixes them
into k² maps. A grouped k×k convolution, whose kernels are initialised as shifts, then moves and sums these into `heads`
outputs per group (stage II, "shift and sum").

`fc` followed by the grouped convolution is exactly one grouped convolution, with 3·heads inputs per group:

    W[(g, o), i, y, x] = Σ_m shift[(g, o), m, y, x] · fc[m, i]

The composed convolution needs no k² maps in between, but its cost grows with heads²: 27·heads² multiplications per
group and pixel for k = 3, compared with 108·heads for the two factors. Beyond 4 heads, the factors are cheaper.

Source: ACmix, CVPR 2022, section 4.2 and the last of the three variants in figure 3.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.dispatch import forced_backend
from acmix_zoo.ops.precision import autocast_dtype, autocast_off
from acmix_zoo.ops.tracing import constant_size

_COMPOSE_UP_TO_HEADS = 4


class ConvFactors(NamedTuple):
    """The weights of the convolution path, in the form that is cheaper to run.

    Attributes:
        fc: mixing matrix (k², 3·heads), or None if it is part of `kernels`.
        kernels: kernels of the grouped convolution, (d·heads, k² or 3·heads, k, k).
    """

    fc: Tensor | None
    kernels: Tensor


def shift_conv(
    x: Tensor, fc: Tensor, shift: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Return the result of the convolution path: mix 3·heads maps into k², shift them, and sum them into heads.

    Args:
        x: projections (B, H, W, d, 3·heads).
        fc: mixing matrix (k², 3·heads).
        shift: kernels (d·heads, k², k, k), ordered (d, heads).
        bias: bias of fc, (k²,), or None. The zero padding is applied after it.
        stride, dilation: of the grouped convolution.

    Returns:
        (B, ceil(H/stride), ceil(W/stride), d·heads), channels ordered (d, heads).
    """
    h, w = x.shape[1:3]
    factors = conv_factors(fc, shift)
    if factors.fc is not None:
        x, bias = F.linear(x, factors.fc, bias), None  # (B, H, W, d, k²)
    out = grouped_conv(x, factors.kernels, stride=stride, dilation=dilation).permute(0, 3, 1, 2)  # (B, d·heads, Ho, Wo)
    if bias is not None:  # add the response to a constant feature map of `bias`, the same for all images
        ones = out.new_ones(1, 1, h, w)
        with autocast_off(shift):
            kernels = torch.einsum("omyx,m->oyx", shift, bias).unsqueeze(1)  # (d·heads, 1, k, k)
        out = out + convolve(ones, kernels.to(out.dtype), stride=stride, dilation=dilation)
    return out.permute(0, 2, 3, 1)  # (B, Ho, Wo, d·heads)


def shift_conv_reference(
    x: Tensor, fc: Tensor, shift: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Compute `shift_conv` in two stages, tap by tap, as printed in the paper."""
    h, w, d = x.shape[1:4]
    kernel = shift.shape[-1]
    reach = kernel // 2 * dilation
    maps = torch.einsum("bhwgi,mi->bhwgm", x, fc)  # (B, H, W, d, k²)
    if bias is not None:
        maps = maps + bias
    padded = F.pad(maps, (0, 0, 0, 0, reach, reach, reach, reach))  # zeros around the feature map
    taps = shift.unflatten(0, (d, -1))  # (d, heads, k², k, k)
    out = x.new_zeros(())
    for row in range(kernel):
        for col in range(kernel):
            top, left = row * dilation, col * dilation
            shifted = padded[:, top : top + h : stride, left : left + w : stride]  # (B, Ho, Wo, d, k²)
            out = out + torch.einsum("bhwgm,gom->bhwgo", shifted, taps[..., row, col])
    return out.flatten(3)  # (B, Ho, Wo, d·heads)


def shift_kernels(channels: int, kernel: int) -> Tensor:
    """Return kernels (channels, kernel², kernel, kernel) that shift: kernel m of each channel is 1 at tap m, else 0."""
    return torch.eye(kernel**2).view(1, kernel**2, kernel, kernel).repeat(channels, 1, 1, 1)


def conv_factors(fc: Tensor, shift: Tensor) -> ConvFactors:
    """Return the mixing matrix and the kernels: composed up to 4 heads, unchanged beyond."""
    if constant_size(fc.shape[1]) > 3 * _COMPOSE_UP_TO_HEADS or forced_backend() == "reference":
        return ConvFactors(fc, shift)
    with autocast_off(shift):
        taps = shift.flatten(2).transpose(1, 2) @ fc  # (d·heads, k·k, 3·heads)
    # In memory, the taps of a kernel come before its inputs. A channels_last convolution reads this layout.
    return ConvFactors(None, taps.unflatten(1, shift.shape[2:]).permute(0, 3, 1, 2))  # (d·heads, 3·heads, k, k)


def grouped_conv(
    x: Tensor, kernels: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Return one convolution for each of d groups, zero-padded.

    Args:
        x: (B, H, W, d, i).
        kernels: (d·heads, i, k, k).
        bias: (d·heads,) or None.
        stride, dilation: of the convolution.

    Returns:
        (B, ceil(H/stride), ceil(W/stride), d·heads).
    """
    maps = x.flatten(3).permute(0, 3, 1, 2)  # (B, d·i, H, W), channels_last
    if torch.compiler.is_compiling():  # inductor cannot order this view's symbolic strides, and picks a layout itself
        maps = maps.contiguous()
    bias = None if bias is None else bias.to(maps.dtype)
    groups = constant_size(x.shape[3])
    out = convolve(maps, kernels.to(maps.dtype), bias, stride=stride, dilation=dilation, groups=groups)
    return out.permute(0, 2, 3, 1)


def convolve(
    maps: Tensor, kernels: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1, groups: int = 1
) -> Tensor:
    """Return `F.conv2d` with zero padding of half a kernel, with correct gradients in bfloat16 on CPUs.

    There, PyTorch 2.14 computes the gradient of channels_last kernels from uninitialised memory if the kernels are
    dilated, or if the stride is larger than the maps are wide. These cases run in float32.

    Args:
        maps: (B, C, H, W).
        kernels: (N, C / groups, k, k) with odd k.
        bias: (N,) or None.
        stride, dilation, groups: of the convolution.

    Returns:
        (B, N, ceil(H/stride), ceil(W/stride)).
    """
    padding = kernels.shape[-1] // 2 * dilation
    dtype = autocast_dtype(maps)
    is_cpu_training = maps.device.type == "cpu" and torch.is_grad_enabled() and not torch.compiler.is_compiling()
    if is_cpu_training and dtype == torch.bfloat16 and (dilation > 1 or stride > maps.shape[3]):
        with autocast_off(maps):
            bias = None if bias is None else bias.float()
            return F.conv2d(maps.float(), kernels.float(), bias, stride, padding, dilation, groups).to(dtype)
    return F.conv2d(maps, kernels, bias, stride, padding, dilation, groups)
