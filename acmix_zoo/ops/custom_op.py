"""The layer as one operator on a CPU, and its gradient as a second one, for compiled graphs and the native library.

On a CPU, a compiler cannot improve the layer. Traced operator by operator, it would lose the chunks that stay in the
caches: inference took 1.2 times as long and training 1.7 times, and compiling for dynamic sizes took minutes. On other
devices and for export, the layer is traced operator by operator.
"""

from __future__ import annotations

from functools import partial
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.acmix import (
    Geometry,
    Keep,
    PathTensors,
    acmix,
    acmix_plain,
    attention_window,
    combine_paths,
    runs_native,
)
from acmix_zoo.ops.backends.native import layer as native
from acmix_zoo.ops.chunks import chunked_backward
from acmix_zoo.ops.derivatives import needs_plain_gradients, plain_gradients, with_autograd
from acmix_zoo.ops.dispatch import plan_batch
from acmix_zoo.ops.projection import project

# The arguments of `acmix`, with the fields of `PathTensors` and `Geometry` one by one.
_TENSORS = (
    "Tensor x, Tensor weight, Tensor? bias, "
    "Tensor? positions, Tensor? fc, Tensor? kernels, Tensor? alpha, Tensor? offset"
)
_SIZES = "int heads, int kernel_att, int stride, int dilation"
_N_TENSORS = 3 + len(PathTensors._fields)
# These are defined by schema, because `torch.library.custom_op` would disable autograd in the implementation, and the
# gradient is computed with autograd. The second result is the projections in the layout that `keep` names, or empty.
torch.library.define("acmix_zoo::acmix", f"({_TENSORS}, {_SIZES}, int keep) -> (Tensor, Tensor)")
torch.library.define(
    "acmix_zoo::acmix_backward", f"(Tensor grad, Tensor kept, {_TENSORS}, {_SIZES}, bool[] needed) -> Tensor[]"
)


@torch.library.impl("acmix_zoo::acmix", "cpu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any) -> tuple[Tensor, Tensor]:
    paths, geometry, keep = _unflatten_arguments(arguments)
    with torch.no_grad():
        is_native = runs_native(x, weight, bias, paths, geometry)
        if keep == Keep.NATIVE or (keep == Keep.NOTHING and is_native):
            out, kept = native.forward(x, weight, bias, paths, geometry, keep == Keep.NATIVE)
            if not is_native:  # a compiled graph under `use_backend`, whose gradient may run without it
                out = acmix(x, weight, bias, paths, geometry)
        elif keep == Keep.PROJECTIONS:
            kept = project(x, weight, bias)  # (B, H, W, 3·out)
            chunks = kept.split(_chunk_size(x, weight, geometry))
            out = torch.cat([combine_paths(chunk, paths, geometry) for chunk in chunks])
        else:
            kept, out = x.new_empty(0), acmix(x, weight, bias, paths, geometry)
    return out.contiguous(memory_format=torch.channels_last), kept


@torch.library.impl("acmix_zoo::acmix_backward", "cpu")
def _backward(
    grad: Tensor, kept: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *arguments: Any
) -> list[Tensor]:
    paths, geometry, needed = _unflatten_arguments(arguments)
    is_native_layout = kept.numel() > 0 and kept.shape[-1] != len(weight)
    can_be_native = kept.numel() == 0 and native.has_gradients(paths, needed) and native.keeps_threads_busy(len(x))
    if (is_native_layout or can_be_native) and runs_native(x, weight, bias, paths, geometry):
        gradients = native.backward(grad, kept, x, weight, bias, paths, geometry, needed)
        return [t for t, need in zip(gradients, needed, strict=True) if need and t is not None]
    chunk_size, stage_two = _chunk_size(x, weight, geometry), partial(combine_paths, geometry=geometry)
    chunks = kept.split(chunk_size) if kept.numel() and not is_native_layout else ()
    compute = partial(chunked_backward, stage_two, chunk_size, grad, chunks, x, weight, bias, paths, needed)
    found = with_autograd(compute)
    return [t for t, need in zip(found, needed, strict=True) if need and t is not None]


def _unflatten_arguments(arguments: tuple[Any, ...]) -> tuple[PathTensors, Geometry, Any]:
    """Return the tensors of the paths, the sizes of the layer, and the last argument."""
    return PathTensors(*arguments[:5]), Geometry(*arguments[5:9]), arguments[9]


def _chunk_size(x: Tensor, weight: Tensor, geometry: Geometry) -> int:
    """Return the number of images to process at a time."""
    window = attention_window(geometry)
    plan = plan_batch(x.shape, len(weight) // 3, window, itemsize=x.element_size(), device=x.device.type)
    return min(len(x), plan.chunk_size)


@torch.library.register_fake("acmix_zoo::acmix")
def _fake_forward(x, weight, bias, positions, fc, kernels, alpha, offset, heads, kernel_att, stride, dilation, keep):  # type: ignore[no-untyped-def]
    b, _, h, w = x.shape
    rows, cols = (h - 1) // stride + 1, (w - 1) // stride + 1
    out = x.new_empty((b, rows, cols, len(weight) // 3)).permute(0, 3, 1, 2)  # (B, out, Ho, Wo)
    pixel = native.pixel_floats(len(weight) // 3, heads) if keep == Keep.NATIVE else len(weight)
    return out, x.new_empty((0,) if keep == Keep.NOTHING else (b, h, w, pixel))


@torch.library.register_fake("acmix_zoo::acmix_backward")
def _fake_backward(grad, kept, *arguments):  # type: ignore[no-untyped-def]
    tensors, needed = arguments[:_N_TENSORS], arguments[-1]
    return [torch.empty_like(t) for t, need in zip(tensors, needed, strict=True) if need and t is not None]


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:_N_TENSORS], output[1])
    ctx.geometry = Geometry(*inputs[_N_TENSORS:-1])
    ctx.set_materialize_grads(False)  # no zeros as the gradient of the projections, which are for this file alone


def _gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return tuple(None for _ in ctx.needs_input_grad)
    *tensors, kept = ctx.saved_tensors
    needed = [need and t is not None for need, t in zip(ctx.needs_input_grad[:_N_TENSORS], tensors, strict=True)]
    if needs_plain_gradients(grad):

        def plain(x: Tensor, weight: Tensor, bias: Tensor | None, *paths: Tensor | None) -> Tensor:
            return acmix_plain(x, weight, bias, paths, ctx.geometry)

        found = plain_gradients(plain, tensors, needed, grad)
    else:
        gradients = iter(torch.ops.acmix_zoo.acmix_backward(grad, kept, *tensors, *ctx.geometry, needed))
        found = [next(gradients) if need else None for need in needed]
    return *found, *(None for _ in ctx.geometry), None


torch.library.register_autograd("acmix_zoo::acmix", _gradient, setup_context=_setup_context)
