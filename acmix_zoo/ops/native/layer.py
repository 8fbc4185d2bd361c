"""Run a whole ACmix layer in the native library, and say which layers it takes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from acmix_zoo.ops.native.library import Layer, library, parallel

# The kernels of the convolution path are composed, and their arithmetic grows with heads².
MOST_HEADS = 16


def refusal(x: Tensor, weight: Tensor, bias: Tensor | None, mixing: Sequence[Tensor | None], heads: int) -> str | None:
    """Return why the native library cannot run a layer, in words, or None if it can.

    Args are those of `acmix_zoo.ops.acmix.acmix`.
    """
    tensors = [t for t in (x, weight, bias, *mixing) if t is not None]
    for t in tensors:
        if type(t) not in (Tensor, nn.Parameter):  # a subclass has its own idea of what its operators are
            return f"it takes plain tensors; this is a {type(t).__name__}"
        if t.device.type != "cpu":
            return f"it runs on a CPU only; this is {t.device.type}"
        if t.dtype != torch.float32:
            return f"it computes in float32; this is {t.dtype}".replace("torch.", "")
    if heads > MOST_HEADS:
        return f"it takes up to {MOST_HEADS} heads; these are {heads}"
    if library() is None:
        return "the native library is not available"
    return None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixing: Sequence[Tensor | None],
    geometry: tuple[int, int, int, int],
) -> Tensor:
    """Return `acmix_zoo.ops.acmix.acmix` of float32 tensors on a CPU, computed by the native library.

    Arguments and result as there. Nothing is recorded for autograd.
    """
    loaded = library()
    if loaded is None:
        raise RuntimeError("The native CPU kernel is not available here. Call `refusal` first.")
    (b, c, h, w), (heads, kernel, stride, dilation) = x.shape, geometry
    pe, fc, shift, alpha, offset = mixing
    channels = len(weight) // 3
    out = x.new_empty((b, (h - 1) // stride + 1, (w - 1) // stride + 1, channels))  # (B, Ho, Wo, out)
    taps = None if shift is None else composed(fc, shift)
    # The library gets addresses only, so every tensor must live until it returns.
    tensors = {
        "x": x.permute(0, 2, 3, 1).contiguous(),  # (B, H, W, C): no copy of a channels_last tensor
        "weight": weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "positions": None if pe is None else pe.contiguous(),
        "kernels": taps,
        "alpha": None if alpha is None else alpha.expand(channels).contiguous(),
        "offset": None if offset is None else offset.contiguous(),
        "out": out,
    }
    conv_kernel = 1 if shift is None else shift.shape[-1]
    sizes = (b, h, w, c, heads, channels // heads, kernel, stride, dilation, conv_kernel, torch.get_num_threads())
    pointers = [None if t is None else t.data_ptr() for t in tensors.values()]
    loaded.acmix_forward(ctypes.byref(Layer(*sizes, parallel(), *pointers)))
    return out.permute(0, 3, 1, 2)


def composed(fc: Tensor | None, shift: Tensor) -> Tensor:
    """Return the kernels of the convolution path as (out, k·k, 3·heads), from `conv_factors`."""
    if fc is None:
        return shift.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # from (out, 3·heads, k, k); usually no copy
    return shift.flatten(2).transpose(1, 2) @ fc  # (out, k·k, k²) @ (k², 3·heads)
