"""The whole layer as one function: project once, attend and convolve on the same projections, add.

A large batch is worked off in chunks that stay in the processor's caches, and what lies between input and output is not
kept: for the gradient, a chunk is computed again. Such a layer holds its input, its output and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from acmix_zoo.ops.derivatives import is_transformed, needs_plain_gradients, plain_gradients
from acmix_zoo.ops.local_attention import local_attention
from acmix_zoo.ops.native.layer import has_backward, is_available, refusal
from acmix_zoo.ops.plan import forced_form, keeps_projections, plan_layer, use_form
from acmix_zoo.ops.projection import project, project_backward
from acmix_zoo.ops.shift_conv import grouped_conv
from acmix_zoo.ops.tracing import is_exporting, unflatten


class Geometry(NamedTuple):
    """What is not a tensor: heads, and the attention window's side, the stride and the dilation."""

    heads: int
    kernel: int
    stride: int
    dilation: int


class Keep(IntEnum):
    """What `torch.ops.acmix_zoo.acmix` keeps of the projections for the gradient, and in which layout."""

    NOTHING = 0
    CALLER = 1  # (B, H, W, 3·out), as `project` returns them
    LIBRARY = 2  # (B, H, W, …), the native library's own


def acmix(
    x: Tensor, weight: Tensor, bias: Tensor | None, mixing: Sequence[Tensor | None], geometry: Geometry
) -> Tensor:
    """`alpha · attention + convolution` of the projections of x.

    Args:
        x: (B, C, H, W), of any memory format.
        weight, bias: (3·out, C), (3·out,), rows ordered (d, {q, k, v}, heads) with out = heads·d.
        mixing: of `mix`.

    Returns:
        (B, out, ceil(H/stride), ceil(W/stride)), channels_last in memory.
    """
    if is_exporting() or is_transformed(x, weight, bias, *mixing):
        return mix_projected(geometry, x, weight, bias, *mixing)
    keeps = torch.is_grad_enabled() and keeps_projections(x.shape[1])
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        # The graph must not depend on the form that is in use when it runs, so the library keeps nothing in one.
        keep = Keep.CALLER if keeps and not (x.dtype == torch.float32 and is_available()) else Keep.NOTHING
        return torch.ops.acmix_zoo.acmix(x, weight, bias, *mixing, *geometry, keep)[0]  # type: ignore[no-any-return]
    if all(t is None or type(t) in (Tensor, Parameter) for t in (x, weight, bias, *mixing)):  # no subclass of a user's
        if runs_native(x, weight, bias, mixing, geometry):
            keep = Keep.LIBRARY if keeps and has_backward(len(x), mixing, [True] * 8) else Keep.NOTHING
            return torch.ops.acmix_zoo.acmix(x, weight, bias, *mixing, *geometry, keep)[0]  # type: ignore[no-any-return]
    window = geometry[1:]
    plan = plan_layer(x.shape, len(weight) // 3, *window, itemsize=x.element_size(), device=x.device.type)
    if plan.keep == "all" or (plan.images >= x.shape[0] and not torch.is_grad_enabled()):
        return mix_projected(geometry, x, weight, bias, *mixing)
    return _Chunked.apply(plan.images, plan.keep == "projections", geometry, x, weight, bias, *mixing)[0]  # type: ignore[no-any-return]


def runs_native(
    x: Tensor, weight: Tensor, bias: Tensor | None, mixing: Sequence[Tensor | None], geometry: Geometry
) -> bool:
    """Return whether the C++ library runs `acmix` of these arguments: no other form is forced, and it takes them."""
    return forced_form() in (None, "native") and refusal(x, weight, bias, mixing, geometry.heads) is None


def mix_projected(g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None, *mixing: Tensor | None) -> Tensor:
    """Return `acmix` for the full batch at once; autograd records every operator."""
    return mix(project(x, weight, bias), mixing, g)


def mix(projections: Tensor, mixing: Sequence[Tensor | None], g: Geometry) -> Tensor:
    """`alpha · attention + convolution` of projections (B, H, W, 3·out) → (B, out, Ho, Wo), channels_last in memory.

    `mixing` holds
        pe: positions (H, W, d); None leaves the attention out;
        fc, shift: of the convolution, as `conv_factors` gives them; shift None leaves the convolution out;
        alpha: (1,) or (out,), the factor of the attention; None if one of the two is left out;
        offset: (out,) added to the convolution, or None.
    """
    pe, fc, shift, alpha, offset = mixing
    projections = unflatten(projections, 3, (-1, 3 * g.heads))  # (B, H, W, d, 3·heads)
    parts = []
    if shift is not None:
        maps = projections if fc is None else F.linear(projections, fc.to(projections.dtype))
        parts.append(grouped_conv(maps, shift, offset, stride=g.stride, dilation=g.dilation))  # (B, Ho, Wo, out)
    if pe is not None:
        parts.append(attend(projections, pe, g).flatten(3))  # (B, Ho, Wo, out)
    # Channels stay as they come, (heads, d) from attention and (d, heads) from convolution: so do the authors.
    out = parts[0] if alpha is None else torch.addcmul(parts[0], parts[1], alpha.to(projections.dtype))
    return out.permute(0, 3, 1, 2)


def attend(projections: Tensor, pe: Tensor, g: Geometry) -> Tensor:
    """The attention path: projections (B, H, W, d, 3·heads) → (B, Ho, Wo, heads, d)."""
    q, k, v = _split(projections, g.heads)
    return local_attention(q, k, v, pe, kernel=g.kernel, stride=g.stride, dilation=g.dilation)


def _split(projections: Tensor, heads: int) -> list[Tensor]:
    """(B, H, W, d, 3·heads) → q, k, v: 3 × (B, H, W, heads, d), views.

    They are split before they are transposed, so that autograd concatenates the three gradients in the layout of
    `projections` and adds those of the convolution in place. Any other order of views costs one or two more copies.
    """
    return [part.transpose(3, 4) for part in projections.split(heads, 4)]


class _Chunked(torch.autograd.Function):
    """`mix(project(x))` over chunks of the batch; backward runs `mix` again, chunk by chunk.

    With `keep` the projections are kept for it, without they are computed again too.
    """

    generate_vmap_rule = True  # under vmap, this is only called with tensors that are not batched

    @staticmethod
    def forward(
        images: int, keep: bool, g: Geometry, x: Tensor, weight: Tensor, bias: Tensor | None, *mixing: Tensor | None
    ) -> tuple[Tensor, ...]:
        """Return the output (B, out, Ho, Wo) and, if `keep`, each chunk's projections (images, H, W, 3·out)."""
        out, kept = None, []
        for i, part in enumerate(x.split(images)):
            projections = project(part, weight, bias)  # (images, H, W, 3·out)
            done = mix(projections, mixing, g)
            if out is None:
                out = done.new_empty((len(x), *done.shape[1:])).to(memory_format=torch.channels_last)
            out[i * images : i * images + len(part)] = done
            if keep:
                kept.append(projections)
            del projections, done  # before the next chunk's are made
        assert out is not None  # even an empty batch is one chunk
        return out, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.images, _, ctx.g, *tensors = inputs
        ctx.tensors, ctx.form = len(tensors), forced_form()
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return tuple(None for _ in ctx.needs_input_grad)
        saved = ctx.saved_tensors
        tensors, kept = saved[: ctx.tensors], saved[ctx.tensors :]
        wanted, g = ctx.needs_input_grad[3:], ctx.g
        with use_form(ctx.form):  # the backward pass may run in another thread or after `use_form` has ended
            if needs_plain_gradients(grad):
                found = plain_gradients(partial(mix_projected, g), tensors, wanted, grad)
            else:
                x, weight, bias, *mixing = tensors
                found = chunked_backward(grad, x, weight, bias, mixing, g, ctx.images, kept, wanted)
        return None, None, None, *found


def chunked_backward(
    grad: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    mixing: Sequence[Tensor | None],
    g: Geometry,
    images: int,
    kept: Sequence[Tensor],
    wanted: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x, weight, bias and `mixing`, computed chunk by chunk.

    `kept` contains the chunks' projections or is empty. Sums over chunks are in float32 or higher precision.
    """
    leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(mixing, wanted[3:], strict=True)]
    sought = [t for t in leaves if t is not None and t.requires_grad]
    d_x, d_weight, d_bias = torch.empty_like(x), _zeros_for_sum(weight), _zeros_for_sum(weight[:, 0])
    d_sought = [_zeros_for_sum(t) for t in sought]
    for i, part in enumerate(x.split(images)):
        rows = slice(i * images, i * images + len(part))
        projections = kept[i] if kept else project(part, weight, bias)
        projections = projections.detach().requires_grad_()  # (images, H, W, 3·out)
        with torch.enable_grad():
            out = mix(projections, leaves, g)
        found = torch.autograd.grad(out, [projections, *sought], grad[rows])
        d_part, d_weight_part = project_backward(found[0], part, weight, wanted[0])
        if d_part is not None:
            d_x[rows] = d_part
        d_weight += d_weight_part
        d_bias += found[0].flatten(0, 2).sum(0, dtype=d_bias.dtype)
        for total, more in zip(d_sought, found[1:], strict=True):
            total += more
    sums = iter(total.to(t.dtype) for total, t in zip(d_sought, sought, strict=True))
    d_mixing = [next(sums) if t is not None and t.requires_grad else None for t in leaves]
    d_weight, d_bias = d_weight.to(weight.dtype), d_bias.to(weight.dtype)
    return [d_x if wanted[0] else None, d_weight, d_bias if bias is not None else None, *d_mixing]


def _zeros_for_sum(t: Tensor) -> Tensor:
    """Return zeros in the shape of t, at least in float32, because sums over many chunks need the precision."""
    return torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
