"""Run both paths of a Swin layer in the native library, and say which layers it takes."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from acmix_zoo.ops.backends.native.layer import call, unsupported_kind_reason
from acmix_zoo.ops.backends.native.library import WindowLayer, parallel

# bias, mask, fc, kernels and offset
Weights = Sequence[Tensor | None]
# heads, window, shift, size and conv_is_rolled
Geometry = tuple[int, tuple[int, int], tuple[int, int], tuple[int, int], bool]


def unsupported_reason(tensors: Sequence[Tensor | None]) -> str | None:
    """Return why the native library cannot run a layer with these tensors, in words, or None if it can."""
    kinds = {(t.device.type, t.dtype) for t in tensors if t is not None}
    return next((reason for kind in kinds if (reason := unsupported_kind_reason(*kind)) is not None), None)


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
    call(function, layer, projections.shape)
