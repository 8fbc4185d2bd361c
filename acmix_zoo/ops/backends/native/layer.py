"""Run a whole ACmix layer in the native library, and say which layers it takes."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor

from acmix_zoo.ops.backends.native.library import Layer, library, parallel

Mixing = Sequence[Tensor | None]
Geometry = tuple[int, int, int, int]

# The kernels of the convolution path are composed, and their arithmetic grows with heads².
MAX_HEADS = 16


def unsupported_reason(x: Tensor, weight: Tensor, bias: Tensor | None, mixing: Mixing, heads: int) -> str | None:
    """Return why the native library cannot run a layer, in words, or None if it can.

    The arguments are those of `acmix_zoo.ops.acmix.acmix`.
    """
    if len(x) and not x.numel():
        return "the native library divides by the height and the width; one of them is 0"
    kinds = {(t.device.type, t.dtype) for t in (x, weight, bias, *mixing) if t is not None}
    return next((reason for kind in kinds if (reason := unsupported_kind_reason(*kind, heads)) is not None), None)


def unsupported_kind_reason(device: str, dtype: torch.dtype, heads: int = 1) -> str | None:
    """Return why the native library cannot run a layer with these properties, in words, or None if it can."""
    if device != "cpu":
        return f"the native library runs on a CPU only; this is {device}"
    if dtype != torch.float32:
        return f"the native library computes in float32; this is {dtype}".replace("torch.", "")
    if heads > MAX_HEADS:
        return f"the native library supports up to {MAX_HEADS} heads, but this layer has {heads}"
    if library() is None:
        return "there is no native library; `acmix-zoo info --backends` shows how to get it"
    if parallel() is None and torch.get_num_threads() > 1:
        return "this PyTorch has no OpenMP threads that the native library could share"
    return None


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_supported(device: str, dtype: torch.dtype, heads: int) -> bool:
    """Return whether `unsupported_kind_reason` has no objection; a compiler may call this while it records a graph."""
    return unsupported_kind_reason(device, dtype, heads) is None


def forward(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixing: Mixing,
    geometry: Geometry,
    keep: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return `acmix_zoo.ops.acmix.acmix` of float32 tensors on a CPU, and what `backward` can use of it.

    Nothing is recorded for autograd.

    Args:
        x, weight, bias, mixing, geometry: those of `acmix`, all accepted by `unsupported_reason`.
        keep: whether to keep the projections, in the library's own layout.

    Returns:
        The result (B, out, Ho, Wo), channels_last in memory, and the projections (B, H, W, …), or an empty tensor.
    """
    (b, _, h, w), stride = x.shape, geometry[2]
    shape = (b, len(weight) // 3, (h - 1) // stride + 1, (w - 1) // stride + 1)
    # Not a view, because a ReLU behind the layer may change it in place.
    out = torch.empty(shape, dtype=x.dtype, memory_format=torch.channels_last)
    kept = x.new_empty((b, h, w, pixel_floats(len(weight) // 3, geometry[0])) if keep else (0,))
    _call("acmix_forward", x, weight, bias, mixing, geometry, dict(out=out, projections=kept if keep else None))
    return out, kept


def backward(
    grad: Tensor,
    kept: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixing: Mixing,
    geometry: Geometry,
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x, weight, bias and `mixing`, or None for those that are not wanted.

    Args:
        grad: the gradient of the result of `forward`, (B, out, Ho, Wo).
        kept: the projections that `forward` returned, or an empty tensor, in which case it projects again.
        x, weight, bias, mixing, geometry: as given to `forward`.
        wanted: for each of the eight tensors, whether its gradient is needed. See `has_gradients`.
    """
    pe, fc, shift, alpha, offset = mixing
    taps = composed(fc, shift) if shift is not None and (wanted[4] or wanted[5]) else None
    d_taps = None if taps is None else torch.zeros_like(taps)  # (out, k·k, 3·heads)
    d_x = torch.empty_like(x, memory_format=torch.channels_last) if wanted[0] else None
    fresh = torch.empty_like if len(x) else torch.zeros_like
    d_weight, d_bias = (
        fresh(t, memory_format=torch.contiguous_format) if want and t is not None else None
        for t, want in ((weight, wanted[1]), (bias, wanted[2]))
    )
    d_pe, d_alpha = (  # the library adds to these, and to d_taps
        torch.zeros_like(t, memory_format=torch.contiguous_format) if want and t is not None else None
        for t, want in ((pe, wanted[3]), (alpha, wanted[6]))
    )
    grad = grad.permute(0, 2, 3, 1).contiguous()  # (B, Ho, Wo, out)
    gradients = dict(
        projections=kept if kept.numel() else None,
        grad=grad,
        d_x=d_x,
        d_weight=d_weight,
        d_bias=d_bias,
        d_positions=d_pe,
        d_kernels=d_taps,
        d_alpha=d_alpha,
    )
    _call("acmix_backward", x, weight, bias, mixing, geometry, gradients)
    d_fc = d_shift = None
    if d_taps is not None and shift is not None:
        d_fc, d_shift = _composed_backward(d_taps, fc, shift)
    d_offset = grad.sum((0, 1, 2)) if offset is not None and wanted[7] else None
    found = (d_x, d_weight, d_bias, d_pe, d_fc, d_shift, d_alpha, d_offset)
    return [
        _match_layout(t, d) if want and t is not None and d is not None else None
        for t, d, want in zip((x, weight, bias, *mixing), found, wanted, strict=True)
    ]


def has_gradients(mixing: Mixing, wanted: Sequence[bool]) -> bool:
    """Return whether `backward` has all wanted gradients. It has none of a different alpha for each channel."""
    alpha = mixing[3]
    return not wanted[6] or alpha is None or alpha.numel() == 1


def keeps_threads_busy(batch: int) -> bool:
    """Return whether `backward` is faster than the Python backend for a batch with this number of threads.

    Its threads share images only, those of the Python backend also share one image. As the two round differently, this
    is why a gradient may depend on the number of threads.
    """
    return 2 * max(batch, 1) >= torch.get_num_threads()


def pixel_floats(channels: int, heads: int) -> int:
    """Return how many floats the library's layout has for the projections of a pixel to q, k, v of `channels` each."""
    return int(_loaded().acmix_pixel(heads, channels // heads))


def composed(fc: Tensor | None, shift: Tensor) -> Tensor:
    """Return the kernels of the convolution path as (out, k·k, 3·heads), from `conv_factors`."""
    if fc is None:
        return shift.permute(0, 2, 3, 1).flatten(1, 2).contiguous()  # from (out, 3·heads, k, k); usually no copy
    return shift.flatten(2).transpose(1, 2) @ fc  # (out, k·k, k²) @ (k², 3·heads)


def _composed_backward(d_taps: Tensor, fc: Tensor | None, shift: Tensor) -> tuple[Tensor | None, Tensor]:
    """Return the gradients of fc and shift for a gradient (out, k·k, 3·heads) of what `composed` returned."""
    if fc is None:
        return None, d_taps.unflatten(1, shift.shape[2:]).permute(0, 3, 1, 2)  # (out, 3·heads, k, k)
    d_shift = (fc @ d_taps.mT).unflatten(2, shift.shape[2:])  # (k², 3·heads) @ (out, 3·heads, k·k)
    return shift.flatten(2).transpose(0, 1).flatten(1) @ d_taps.flatten(0, 1), d_shift  # (k², out·k·k) @ (out·k·k, …)


def _match_layout(t: Tensor, d: Tensor) -> Tensor:
    """Return d with the strides that `torch.empty_like(t)` has, as a compiled graph expects of a gradient of t."""
    expected = torch.empty_like(t, device="meta").stride()
    return d if d.stride() == expected else torch.empty_like(t).copy_(d)


def _loaded() -> ctypes.CDLL:
    loaded = library()
    if loaded is None:
        raise RuntimeError("The native CPU kernel is not available here. Call `unsupported_reason` first.")
    return loaded


def _call(
    function: str,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixing: Mixing,
    geometry: Geometry,
    more: dict[str, Tensor | None],
) -> None:
    (b, c, h, w), (heads, kernel, stride, dilation) = x.shape, geometry
    pe, fc, shift, alpha, offset = mixing
    channels = len(weight) // 3
    # The library gets addresses only, so every tensor must live until it returns.
    tensors: dict[str, Tensor | None] = {
        "x": x.permute(0, 2, 3, 1).contiguous(),  # (B, H, W, C): no copy of a channels_last tensor
        "weight": weight.contiguous(),
        "bias": None if bias is None else bias.contiguous(),
        "positions": None if pe is None else pe.contiguous(),
        "kernels": None if shift is None else composed(fc, shift),
        "alpha": None if alpha is None else alpha.expand(channels).contiguous(),
        "offset": None if offset is None else offset.contiguous(),
        **more,
    }
    layer = Layer(b, h, w, c, heads, channels // heads, kernel, stride, dilation)
    layer.conv_kernel = 1 if shift is None else shift.shape[-1]
    layer.threads, layer.parallel = torch.get_num_threads(), parallel()
    layer.alpha_is_scalar = alpha is None or alpha.numel() == 1
    for name, tensor in tensors.items():
        setattr(layer, name, None if tensor is None else tensor.data_ptr())
    call(function, layer, x.shape)


def call(function: str, layer: ctypes.Structure, shape: Sequence[int]) -> None:
    """Call a function of the library for an input of `shape`.

    Raises:
        torch.OutOfMemoryError: the library could not allocate its buffers. This is its only error.
    """
    if getattr(_loaded(), function)(ctypes.byref(layer)):  # torch's exception, which other code expects
        raise torch.OutOfMemoryError(
            f"The native CPU kernel could not allocate its buffers for an input of shape {tuple(shape)}. "
            "Use a smaller batch, smaller images or fewer threads."
        )
