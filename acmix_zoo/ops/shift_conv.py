"""The convolution path of ACmix: a k×k convolution as projections, shift and sum.

The 3·heads projected maps of each of the d head channels are mixed into k² maps by one small matrix `fc` (shared by
the d groups), and a grouped k×k convolution whose kernels start as shifts moves and sums them into `heads` outputs a
group (stage II, "shift and sum"). Source: ACmix, CVPR 2022, section 4.2 and figure 3, the last of its three variants.

One exact identity: `fc` followed by the grouped convolution is itself one grouped convolution,

    W[(g, o), i, y, x] = Σ_m shift[(g, o), m, y, x] · fc[m, i]

with 3·heads inputs a group. The composed form spares the k² maps in between; its arithmetic grows with heads², so
beyond 4 heads the two factors are cheaper (27·heads² against 108·heads multiplications a group and pixel at k = 3).
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.dispatch import forced_backend
from acmix_zoo.ops.precision import autocast_off
from acmix_zoo.ops.tracing import fixed

_COMPOSE_UP_TO_HEADS = 4


def shift_kernels(channels: int, kernel: int) -> Tensor:
    """(channels, kernel², kernel, kernel): for every channel, kernel m is 1 at tap m and 0 elsewhere."""
    return torch.eye(kernel**2).view(1, kernel**2, kernel, kernel).repeat(channels, 1, 1, 1)


def shift_conv_reference(
    x: Tensor, fc: Tensor, shift: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The two stages as the paper prints them, tap by tap. Shapes and result as `shift_conv`."""
    h, w, d = x.shape[1:4]
    kernel = shift.shape[-1]
    reach = kernel // 2 * dilation
    maps = torch.einsum("bhwgi,mi->bhwgm", x, fc)  # (B, H, W, d, k²)
    if bias is not None:
        maps = maps + bias
    padded = F.pad(maps, (0, 0, 0, 0, reach, reach, reach, reach))  # zeros around the map
    taps = shift.unflatten(0, (d, -1))  # (d, heads, k², k, k)
    out = x.new_zeros(())
    for y in range(kernel):
        for z in range(kernel):
            shifted = padded[:, y * dilation : y * dilation + h : stride, z * dilation : z * dilation + w : stride]
            out = out + torch.einsum("bhwgm,gom->bhwgo", shifted, taps[..., y, z])
    return out.flatten(3)  # (B, Ho, Wo, d·heads)


def shift_conv(
    x: Tensor, fc: Tensor, shift: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Mix 3·heads maps into k², shift them, sum them into heads, for each of d groups.

    Args:
        x: projections (B, H, W, d, 3·heads).
        fc: (k², 3·heads).
        shift: (d·heads, k², k, k), ordered (d, heads).
        bias: optional bias of fc, (k²,); the border sees zeros, not the bias.
        stride, dilation: of the grouped convolution; zero padding keeps ceil(H/stride).

    Returns:
        (B, ceil(H/stride), ceil(W/stride), d·heads), channels ordered (d, heads).
    """
    h, w = x.shape[1:3]
    mixing, kernels = conv_factors(fc, shift)
    if mixing is not None:
        x, bias = F.linear(x, mixing, bias), None  # (B, H, W, d, k²)
    out = grouped_conv(x, kernels, stride=stride, dilation=dilation).permute(0, 3, 1, 2)  # (B, d·heads, Ho, Wo)
    if bias is not None:  # what a constant map of `bias` gives: the same for all images, different at the border
        ones = out.new_ones(1, 1, h, w)
        with autocast_off(shift):
            kernels = torch.einsum("omyx,m->oyx", shift, bias).unsqueeze(1)  # (d·heads, 1, k, k)
        out = out + F.conv2d(ones, kernels.to(out.dtype), None, stride, shift.shape[-1] // 2 * dilation, dilation)
    return out.permute(0, 2, 3, 1)  # (B, Ho, Wo, d·heads)


def conv_factors(fc: Tensor, shift: Tensor) -> tuple[Tensor | None, Tensor]:
    """The mixing matrix and the grouped kernels in their cheaper form: (fc, shift), or (None, both composed)."""
    if fixed(fc.shape[1]) > 3 * _COMPOSE_UP_TO_HEADS or forced_backend() == "reference":
        return fc, shift
    # A kernel's taps lie before its inputs in memory: the layout that a channels_last convolution reads.
    with autocast_off(shift):
        taps = shift.flatten(2).transpose(1, 2) @ fc  # (d·heads, k·k, 3·heads)
    return None, taps.unflatten(1, shift.shape[2:]).permute(0, 3, 1, 2)  # (d·heads, 3·heads, k, k)


def grouped_conv(
    x: Tensor, kernels: Tensor, bias: Tensor | None = None, *, stride: int = 1, dilation: int = 1
) -> Tensor:
    """A convolution for each of d groups: x (B, H, W, d, i), kernels (d·heads, i, k, k), bias (d·heads,) →
    (B, Ho, Wo, d·heads)."""
    padding = kernels.shape[-1] // 2 * dilation
    maps = x.flatten(3).permute(0, 3, 1, 2)  # (B, d·i, H, W), channels_last
    if torch.compiler.is_compiling():  # inductor cannot order this view's symbolic strides, and picks a layout itself
        maps = maps.contiguous()
    bias = None if bias is None else bias.to(maps.dtype)
    out = F.conv2d(maps, kernels.to(maps.dtype), bias, stride, padding, dilation, groups=fixed(x.shape[3]))
    return out.permute(0, 2, 3, 1)
