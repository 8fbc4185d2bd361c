"""Both paths of a Swin layer on a feature map of projections: attention within shifted windows, and the convolution.

`window_paths_plain` defines what is computed. `window_paths` computes the same result with the native CPU library. It
does not roll the feature map or cut it into windows, and saves no intermediate results for backward other than the
projections.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import Parameter

from acmix_zoo.ops.backends.native import window as native
from acmix_zoo.ops.backends.native.layer import is_supported
from acmix_zoo.ops.derivatives import is_transformed, needs_plain_gradients, plain_gradients, with_autograd
from acmix_zoo.ops.dispatch import forced_backend
from acmix_zoo.ops.shift_conv import shift_conv
from acmix_zoo.ops.tracing import is_exporting
from acmix_zoo.ops.window_attention import window_attention_plain
from acmix_zoo.ops.windows import crop, roll, window_masks, window_partition, window_reverse


class WindowGeometry(NamedTuple):
    """The sizes of a layer that do not follow from the shapes of its tensors.

    Attributes:
        heads: number of attention heads.
        window: (height, width) of a window.
        shift: (rows, columns) by which the feature map is rolled back before it is cut into windows.
        size: (height, width) of the results. The feature map is padded to whole windows at the bottom and right.
        conv_is_rolled: whether the convolution sees the rolled and padded feature map, or the cropped one.
        heads_first: whether projections have channels ordered ({q, k, v}, heads, d) instead of (d, {q, k, v}, heads).
    """

    heads: int
    window: tuple[int, int]
    shift: tuple[int, int]
    size: tuple[int, int]
    conv_is_rolled: bool
    heads_first: bool = False


class WindowTensors(NamedTuple):
    """The tensors that the paths need besides the projections, for a window of L positions and dim = heads·d channels.

    Attributes:
        bias: position bias (heads, L, L), or None for a layer without attention.
        mask: masks of shifted windows (4, L, L), or None. See `window_masks`.
        fc: mixing matrix of the convolution with its bias as the last column, (k², 3·heads + 1).
        kernels: kernels of the convolution (d·heads, k², k, k), or None for a layer without convolution.
        offset: (dim,), added to the convolution, or None.
    """

    bias: Tensor | None = None
    mask: Tensor | None = None
    fc: Tensor | None = None
    kernels: Tensor | None = None
    offset: Tensor | None = None


def runs_native(*tensors: Tensor) -> bool:
    """Return whether the native library computes `window_paths` for a layer with these inputs and parameters.

    Graphs for other programs, transforms and subclasses of tensors need plain operators.
    """
    if is_exporting() or torch.is_autocast_enabled("cpu") or not all(type(t) in (Tensor, Parameter) for t in tensors):
        return False
    if torch.compiler.is_compiling():  # the operator checks the rest whenever the graph runs
        return all(is_supported(t.device.type, t.dtype, 1) for t in tensors) and not is_transformed(*tensors)
    return _is_native(tensors) and not is_transformed(*tensors)


def _is_native(tensors: Sequence[Tensor | None]) -> bool:
    return (
        forced_backend() in (None, "native")
        and all(t is None or t.numel() or not len(t) for t in tensors)  # the kernel divides by H and W, but not by B
        and native.unsupported_reason(tensors) is None
    )


def window_paths(projections: Tensor, tensors: WindowTensors, geometry: WindowGeometry) -> tuple[Tensor, Tensor]:
    """Return the results of attention and convolution, computed in the native library.

    Args:
        projections: (B, H, W, 3·dim) with channels ordered (d, {q, k, v}, heads), unless `heads_first` is set. H and W
            are multiples of the window.
        tensors, geometry: the rest of the layer.

    Returns:
        attention: (B·h·w, dim) for a size of (h, w), with channels ordered (heads, d). Empty without attention.
        convolution: (B·h·w, dim), with channels ordered (d, heads). Empty without convolution.
    """
    return torch.ops.acmix_zoo.window_paths(projections, *tensors, *geometry)  # type: ignore[no-any-return]


def window_paths_plain(
    projections: Tensor, tensors: WindowTensors, geometry: WindowGeometry
) -> tuple[Tensor | None, Tensor | None]:
    """Compute `window_paths` with plain PyTorch operators, which are differentiable to any order.

    Return None for a path the layer does not have.
    """
    bias, mask, fc, kernels, offset = tensors
    heads, window, shift, size, conv_is_rolled, heads_first = geometry
    (b, h, w), (wh, ww) = projections.shape[:3], window
    if heads_first:
        projections = projections.unflatten(3, (3 * heads, -1)).transpose(3, 4).flatten(3)  # (B, H, W, 3·dim)
    rolled = roll(projections, (-shift[0], -shift[1])).unflatten(3, (-1, 3 * heads))  # (B, H, W, d, 3·heads)

    def back(x: Tensor) -> Tensor:  # (B, H, W, …) → (B, h, w, …)
        return crop(roll(x, shift), *size)

    attention = convolution = None
    if bias is not None:
        windows = window_partition(rolled, window).unflatten(3, (3, heads))  # (B·n, L, d, 3, heads)
        q, k, v = windows.permute(3, 0, 4, 1, 2)  # 3 × (B·n, heads, L, d)
        biases = bias.unsqueeze(0)  # (1, heads, L, L)
        if mask is not None:
            biases = biases + window_masks(mask, h // wh, w // ww)  # (n, heads, L, L)
        out = window_attention_plain(q, k, v, biases).transpose(1, 2).flatten(2)  # (B·n, L, heads·d)
        attention = back(window_reverse(out, window, (b, h, w))).flatten(0, 2)  # (B·h·w, dim)
    if kernels is not None:
        assert fc is not None
        maps = rolled if conv_is_rolled else back(rolled)
        out = shift_conv(maps, fc[:, :-1], kernels, fc[:, -1])  # (B, H, W, dim) or (B, h, w, dim)
        convolution = (back(out) if conv_is_rolled else out).flatten(0, 2)  # (B·h·w, dim)
        convolution = convolution if offset is None else convolution + offset
    return attention, convolution


_TENSORS = "Tensor projections, Tensor? bias, Tensor? mask, Tensor? fc, Tensor? kernels, Tensor? offset"
_SIZES = "int heads, SymInt[] window, int[] shift, SymInt[] size, bool conv_is_rolled, bool heads_first"
_N_TENSORS = 1 + len(WindowTensors._fields)
torch.library.define("acmix_zoo::window_paths", f"({_TENSORS}, {_SIZES}) -> (Tensor, Tensor)")
# The gradients of the projections, and of bias, fc and kernels where `wanted` (bias, fc and kernels) says so.
torch.library.define(
    "acmix_zoo::window_paths_backward",
    f"(Tensor d_attention, Tensor d_convolution, {_TENSORS}, {_SIZES}, bool[] wanted) -> Tensor[]",
)


def _geometry(sizes: Any) -> WindowGeometry:
    heads, window, shift, size, *flags = sizes
    return WindowGeometry(heads, tuple(window), tuple(shift), tuple(size), *flags)


@torch.library.impl("acmix_zoo::window_paths", "cpu")
def _forward(projections: Tensor, *arguments: Any) -> tuple[Tensor, Tensor]:
    tensors, geometry = WindowTensors(*arguments[:5]), _geometry(arguments[5:])
    if _is_native((projections, *tensors)):
        return native.forward(projections, tensors, geometry)
    # a compiled graph under `use_backend`, for an empty feature map, or in another process without the library
    attention, convolution = (
        projections.new_empty(0) if result is None else result.contiguous()
        for result in window_paths_plain(projections, tensors, geometry)
    )
    return attention, convolution


@torch.library.impl("acmix_zoo::window_paths_backward", "cpu")
def _backward(d_attention: Tensor, d_convolution: Tensor, projections: Tensor, *arguments: Any) -> list[Tensor]:
    tensors, geometry, wanted = WindowTensors(*arguments[:5]), _geometry(arguments[5:-1]), arguments[-1]
    if _is_native((projections, *tensors)) and native.has_backward(len(projections)):
        gradients = native.backward(d_attention, d_convolution, projections, tensors, geometry, wanted)
        return [t for t in gradients if t is not None]
    inputs = (projections, *tensors)
    needed = [True, wanted[0], False, wanted[1], wanted[1], False]
    leaves = [
        t.detach().requires_grad_() if t is not None and need else t for t, need in zip(inputs, needed, strict=True)
    ]
    grad = _concatenate(d_attention, d_convolution, tensors)
    found = with_autograd(partial(plain_gradients, partial(_plain_columns, geometry), leaves, needed, grad))
    return [t.contiguous() for t in found if t is not None]


def _plain_columns(geometry: WindowGeometry, projections: Tensor, *tensors: Tensor | None) -> Tensor:
    """Return the results of `window_paths_plain` next to each other, (B·h·w, dim or 2·dim)."""
    results = window_paths_plain(projections, WindowTensors(*tensors), geometry)
    return torch.cat([t for t in results if t is not None], 1)


def _concatenate(d_attention: Tensor, d_convolution: Tensor, tensors: WindowTensors) -> Tensor:
    """Return the gradient of `_plain_columns`."""
    return torch.cat(
        [d for d, t in ((d_attention, tensors.bias), (d_convolution, tensors.kernels)) if t is not None], 1
    )


@torch.library.register_fake("acmix_zoo::window_paths")
def _fake_forward(projections, bias, mask, fc, kernels, offset, heads, window, shift, size, *flags):  # type: ignore[no-untyped-def]
    shape = (projections.shape[0] * size[0] * size[1], projections.shape[3] // 3)
    return tuple(projections.new_empty(shape if t is not None else (0,)) for t in (bias, kernels))


@torch.library.register_fake("acmix_zoo::window_paths_backward")
def _fake_backward(d_attention, d_convolution, projections, bias, mask, fc, kernels, *arguments):  # type: ignore[no-untyped-def]
    wanted = arguments[-1]
    inputs = [projections, *(t for t, want in ((bias, wanted[0]), (fc, wanted[1]), (kernels, wanted[1])) if want)]
    return [torch.empty_like(t, memory_format=torch.contiguous_format) for t in inputs if t is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_N_TENSORS])
    ctx.geometry = _geometry(inputs[_N_TENSORS:])


def _gradient(ctx: Any, d_attention: Tensor, d_convolution: Tensor) -> tuple[Tensor | None, ...]:
    tensors, geometry = ctx.saved_tensors, ctx.geometry
    needed = [need and t is not None for need, t in zip(ctx.needs_input_grad[:_N_TENSORS], tensors, strict=True)]
    gradients: list[Tensor | None]
    if needs_plain_gradients(d_attention) or needs_plain_gradients(d_convolution):
        grad = _concatenate(d_attention, d_convolution, WindowTensors(*tensors[1:]))
        gradients = plain_gradients(partial(_plain_columns, geometry), tensors, needed, grad)
    else:
        wanted = [needed[1], needed[3] or needed[4]]
        computed = iter(
            torch.ops.acmix_zoo.window_paths_backward(d_attention, d_convolution, *tensors, *geometry, wanted)
        )
        gradients = [next(computed), next(computed) if wanted[0] else None, None]
        gradients += [next(computed), next(computed)] if wanted[1] else [None, None]
        gradients.append(d_convolution.sum(0) if needed[5] else None)
    return *gradients, *(None for _ in geometry)


torch.library.register_autograd("acmix_zoo::window_paths", _gradient, setup_context=_setup_context)
