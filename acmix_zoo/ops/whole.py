"""The layer as one operator on a CPU, with its gradient as another.

The native library is always called through it, so that compilers, FLOP counters and other dispatch modes see an
operator. Without the library it serves compiled graphs.
A compiler has nothing to add to it there: traced, it loses the chunks that stay in the cache, took 1.2 times as long
for inference and 1.7 times for training, and minutes to compile at symbolic sizes. On other devices and for export the
layer is traced operator by operator.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from contextvars import copy_context
from functools import partial
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.acmix import Geometry, Keep, acmix, chunked_backward, mix, mix_projected, runs_native
from acmix_zoo.ops.derivatives import needs_plain_gradients, plain_gradients
from acmix_zoo.ops.native import layer as native
from acmix_zoo.ops.plan import plan_layer
from acmix_zoo.ops.projection import project

_TENSORS = "Tensor x, Tensor weight, Tensor? bias, Tensor? pe, Tensor? fc, Tensor? shift, Tensor? alpha, Tensor? offset"
_NUMBERS = "int heads, int kernel, int stride, int dilation"
# Defined by schema: `custom_op` would switch autograd off inside, which the gradient is worked out by.
# The second result are the projections in the layout that `keep` names (see `Keep`), or empty.
torch.library.define("acmix_zoo::acmix", f"({_TENSORS}, {_NUMBERS}, int keep) -> (Tensor, Tensor)")
torch.library.define(
    "acmix_zoo::acmix_backward", f"(Tensor grad, Tensor kept, {_TENSORS}, {_NUMBERS}, bool[] wanted) -> Tensor[]"
)


def _images(x: Tensor, weight: Tensor, g: Geometry) -> int:
    """How many images at a time."""
    size = dict(itemsize=x.element_size(), device=x.device.type)
    return min(len(x), plan_layer(x.shape, len(weight) // 3, *g[1:], **size).images)  # type: ignore[arg-type]


@torch.library.impl("acmix_zoo::acmix", "cpu")
def _forward(x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> tuple[Tensor, Tensor]:
    mixing, g, keep = rest[:5], Geometry(*rest[5:9]), rest[9]
    with torch.no_grad():
        if keep == Keep.LIBRARY or (keep == Keep.NOTHING and runs_native(x, weight, bias, mixing, g)):
            out, kept = native.forward(x, weight, bias, mixing, g, keep == Keep.LIBRARY)
        elif keep == Keep.CALLER:
            kept = project(x, weight, bias)  # (B, H, W, 3·out)
            out = torch.cat([mix(part, mixing, g) for part in kept.split(_images(x, weight, g))])
        else:
            kept, out = x.new_empty(0), acmix(x, weight, bias, mixing, g)
    return out.contiguous(memory_format=torch.channels_last), kept


@torch.library.register_fake("acmix_zoo::acmix")
def _(x, weight, bias, pe, fc, shift, alpha, offset, heads, kernel, stride, dilation, keep):  # type: ignore[no-untyped-def]
    b, _, h, w = x.shape
    rows, cols = (h - 1) // stride + 1, (w - 1) // stride + 1
    out = x.new_empty((b, rows, cols, len(weight) // 3)).permute(0, 3, 1, 2)  # (B, out, Ho, Wo)
    pixel = native.pixel_floats(len(weight) // 3, heads) if keep == Keep.LIBRARY else len(weight)
    return out, x.new_empty((0,) if keep == Keep.NOTHING else (b, h, w, pixel))


def _autograd_is_on() -> bool:
    with torch.enable_grad():
        return torch.empty(0, requires_grad=True).neg().requires_grad


@torch.library.impl("acmix_zoo::acmix_backward", "cpu")
def _backward(grad: Tensor, kept: Tensor, x: Tensor, weight: Tensor, bias: Tensor | None, *rest: Any) -> list[Tensor]:
    mixing, g, wanted = rest[:5], Geometry(*rest[5:9]), rest[9]
    in_library_layout = kept.numel() > 0 and kept.shape[-1] != len(weight)
    if in_library_layout or (
        kept.numel() == 0 and runs_native(x, weight, bias, mixing, g) and native.has_backward(len(x), mixing, wanted)
    ):
        found = native.backward(grad, kept, x, weight, bias, mixing, g, wanted)
        return [t for t, w in zip(found, wanted, strict=True) if w and t is not None]
    images = _images(x, weight, g)
    arguments = (grad, x, weight, bias, mixing, g, images, kept.split(images) if kept.numel() else (), wanted)
    if _autograd_is_on():
        found = chunked_backward(*arguments)
    else:  # under a dispatch mode, such as a FLOP counter, autograd is off; in another thread there is no mode
        context = copy_context()  # `use_form` may have forced a form in it
        with ThreadPoolExecutor(1) as pool:
            found = pool.submit(lambda: context.run(chunked_backward, *arguments)).result()
    return [t for t, w in zip(found, wanted, strict=True) if w and t is not None]


@torch.library.register_fake("acmix_zoo::acmix_backward")
def _(grad, kept, *rest):  # type: ignore[no-untyped-def]
    return [torch.empty_like(t) for t, w in zip(rest[:8], rest[-1], strict=True) if w and t is not None]


def _save(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:8], output[1])
    ctx.numbers = inputs[8:12]


def _gradient(ctx: Any, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    *tensors, kept = ctx.saved_tensors
    wanted = [need and t is not None for need, t in zip(ctx.needs_input_grad[:8], tensors, strict=True)]
    if needs_plain_gradients(grad):
        plain = partial(mix_projected, Geometry(*ctx.numbers))
        return *plain_gradients(plain, tensors, wanted, grad), None, None, None, None, None
    found = iter(torch.ops.acmix_zoo.acmix_backward(grad, kept, *tensors, *ctx.numbers, wanted))
    return *(next(found) if w else None for w in wanted), None, None, None, None, None


torch.library.register_autograd("acmix_zoo::acmix", _gradient, setup_context=_save)
