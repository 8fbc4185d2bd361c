"""Run both paths of a Swin layer in the native library, and say which layers it takes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from acmix_zoo.ops.backends.native.library import WindowLayer, library, parallel

# bias, mask, fc, kernels and offset
Weights = Sequence[Tensor | None]
# heads, window, shift, size and conv_is_rolled
Geometry = tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], bool]


def refusal(tensors: Sequence[Tensor | None]) -> str | None:
    """Return why the native library cannot run a layer with these tensors, in words, or None if it can."""
    for t in tensors:
        if t is not None and t.device.type != "cpu":
            return f"it runs on a CPU only; this is {t.device.type}"
        if t is not None and t.dtype != torch.float32:
            return f"it computes in float32; this is {t.dtype}".replace("torch.", "")
    if library() is None:
        return "the native library is not available"
    if parallel() is None and torch.get_num_threads() > 1:
        return "this PyTorch has no OpenMP threads that the native library could share"
    return None


def has_backward(images: int) -> bool:
    """Return whether the gradient runs natively, too. Each thread takes whole images, so there must be enough."""
    return images == 0 or 2 * images >= torch.get_num_threads()


def forward(projections: Tensor, weights: Weights, geometry: Geometry) -> tuple[Tensor, Tensor]:
    """Return `acmix_zoo.ops.window_paths.window_paths` of float32 tensors. Nothing is recorded for autograd."""
    bias, _, _, kernels, _ = weights
    channels, (rows, columns) = projections.shape[3] // 3, geometry[3]
    shape = (len(projections) * rows * columns, channels)
    attention = projections.new_empty(shape if bias is not None else (0,))
    convolution = projections.new_empty(shape if kernels is not None else (0,))
    _call("acmix_window_forward", projections, weights, geometry, dict(attention=attention, convolution=convolution))
    return attention, convolution


def backward(
    d_attention: Tensor,
    d_convolution: Tensor,
    projections: Tensor,
    weights: Weights,
    geometry: Geometry,
    wanted: Sequence[bool],
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """Return the gradients of the projections, and of bias, fc and kernels, or None for those that are not wanted.

    Args:
        d_attention, d_convolution: the gradients of the two results of `forward`.
        projections, weights, geometry: as given to `forward`.
        wanted: whether the gradients of the bias and of the convolution (fc and kernels) are needed.
    """
    bias, _, fc, kernels, _ = weights
    fresh = torch.empty_like if len(projections) else torch.zeros_like
    d_projections = torch.empty_like(projections, memory_format=torch.contiguous_format)
    d_bias, d_fc, d_kernels = (
        fresh(t, memory_format=torch.contiguous_format) if t is not None and want else None
        for t, want in ((bias, wanted[0]), (fc, wanted[1]), (kernels, wanted[1]))
    )
    gradients = dict(
        d_attention=d_attention.contiguous(),
        d_convolution=d_convolution.contiguous(),
        d_projections=d_projections,
        d_bias=d_bias,
        d_fc=d_fc,
        d_kernels=d_kernels,
    )
    _call("acmix_window_backward", projections, weights, geometry, gradients)
    return d_projections, d_bias, d_fc, d_kernels


def _call(
    function: str, projections: Tensor, weights: Weights, geometry: Geometry, tensors: dict[str, Tensor | None]
) -> None:
    heads, window, shift, size, conv_is_rolled = geometry
    (b, h, w, channels), kernels = projections.shape, weights[3]
    names = ("projections", "bias", "mask", "fc", "kernels", "offset")
    inputs = (t if t is None else t.detach().contiguous() for t in (projections, *weights))
    tensors = {**dict(zip(names, inputs, strict=True)), **tensors}  # keeps contiguous copies alive during the call
    layer = WindowLayer(
        batch=b,
        height=h,
        width=w,
        heads=heads,
        head_width=channels // (3 * heads),
        window_height=window[0],
        window_width=window[1],
        shift_rows=shift[0],
        shift_columns=shift[1],
        out_height=size[0],
        out_width=size[1],
        conv_kernel=1 if kernels is None else kernels.shape[-1],
        conv_is_rolled=conv_is_rolled,
        threads=torch.get_num_threads(),
        parallel=parallel(),
        **{name: None if t is None else t.data_ptr() for name, t in tensors.items()},
    )
    loaded = library()
    assert loaded is not None  # `refusal` has made sure of this
    getattr(loaded, function)(ctypes.byref(layer))
