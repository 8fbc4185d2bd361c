"""The whole layer as one function: project once, attend and convolve on the same projections, add.

A large batch is worked off in chunks that stay in the processor's caches, and what lies between input and output is not
kept: for the gradient, a chunk is computed again. Such a layer holds its input, its output and little else.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable

from acmix_zoo.ops.local_attention import local_attention
from acmix_zoo.ops.plan import forced_form, keeps_projections, plan_layer, use_form
from acmix_zoo.ops.shift_conv import grouped_conv
from acmix_zoo.ops.tracing import is_exporting, is_recording, unflatten


class Geometry(NamedTuple):
    """What is not a tensor: heads, and the attention window's side, the stride and the dilation."""

    heads: int
    kernel: int
    stride: int
    dilation: int


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
    if is_exporting():
        return mix(project(x, weight, bias), mixing, geometry)
    if torch.compiler.is_compiling() and x.device.type == "cpu":
        keep = torch.is_grad_enabled() and keeps_projections(x.shape[1])
        return torch.ops.acmix_zoo.acmix(x, weight, bias, *mixing, *geometry, keep)[0]  # type: ignore[no-any-return]
    window = geometry[1:]
    plan = plan_layer(x.shape, len(weight) // 3, *window, itemsize=x.element_size(), device=x.device.type)
    if plan.keep == "all" or (plan.images >= x.shape[0] and not torch.is_grad_enabled()):
        return mix(project(x, weight, bias), mixing, geometry)
    return _Chunked.apply(plan.images, plan.keep == "projections", geometry, x, weight, bias, *mixing)  # type: ignore[no-any-return]


def project(x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """(B, C, H, W) → (B, H, W, 3·out)."""
    return F.linear(x.permute(0, 2, 3, 1), weight, bias)


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
    if is_recording() or not torch.is_grad_enabled() or forced_form() == "reference":
        q, k, v = _split(projections, g.heads)
        return local_attention(q, k, v, pe, kernel=g.kernel, stride=g.stride, dilation=g.dilation)
    return _Attend.apply(projections, pe, g)  # type: ignore[no-any-return]


def _split(projections: Tensor, heads: int) -> tuple[Tensor, ...]:
    """(B, H, W, d, 3·heads) → q, k, v: 3 × (B, H, W, heads, d), views."""
    return unflatten(projections, 4, (3, heads)).transpose(3, 5).unbind(4)


class _Attend(torch.autograd.Function):
    """`local_attention` of q, k and v that lie interleaved in one tensor: their gradients are written into one such
    tensor, where autograd would stack them in an order that the next matrix product must copy."""

    @staticmethod
    def forward(ctx, projections: Tensor, pe: Tensor, g: Geometry) -> Tensor:  # type: ignore[no-untyped-def]
        leaves = [t.detach().requires_grad_() for t in (*_split(projections.detach(), g.heads), pe)]
        with torch.enable_grad():
            out = local_attention(*leaves, kernel=g.kernel, stride=g.stride, dilation=g.dilation)
        ctx.leaves, ctx.out, ctx.heads = leaves, out, g.heads
        return out.detach()

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        q, k, v, pe = torch.autograd.grad(ctx.out, ctx.leaves, grad, retain_graph=True)
        b, h, w, heads, d = ctx.leaves[1].shape
        grads = grad.new_empty((b, h, w, d, 3 * heads))
        for part, found in zip(_split(grads, heads), (q, k, v), strict=True):
            part.copy_(found)
        return grads, pe, None


class _Chunked(torch.autograd.Function):
    """`mix(project(x))` over chunks of the batch; backward runs `mix` again, chunk by chunk.

    With `keep` the projections are kept for it, without they are computed again too.
    """

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx,
        images: int,
        keep: bool,
        g: Geometry,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *mixing: Tensor | None,
    ) -> Tensor:
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
        ctx.save_for_backward(x, weight, bias, *mixing, *kept)
        ctx.images, ctx.g, ctx.mixing, ctx.form = images, g, len(mixing), forced_form()
        return out  # type: ignore[return-value]

    @staticmethod
    @once_differentiable
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        x, weight, bias, *rest = ctx.saved_tensors
        mixing, kept = rest[: ctx.mixing], rest[ctx.mixing :]
        with use_form(ctx.form):  # the backward pass may run in another thread, or after `use_form`
            found = chunked_backward(grad, x, weight, bias, mixing, ctx.g, ctx.images, kept, ctx.needs_input_grad[3:])
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
    """Gradients of x, weight, bias and `mixing`, chunk by chunk; `kept` holds the chunks' projections or nothing."""
    leaves = [t if t is None else t.detach().requires_grad_(w) for t, w in zip(mixing, wanted[3:], strict=True)]
    sought = [t for t in leaves if t is not None and t.requires_grad]
    d_weight, d_bias = torch.zeros_like(weight), weight.new_zeros(len(weight))
    d_x, d_sought = torch.empty_like(x), [torch.zeros_like(t) for t in sought]
    for i, part in enumerate(x.split(images)):
        rows = slice(i * images, i * images + len(part))
        projections = kept[i] if kept else project(part, weight, bias)
        projections = projections.detach().requires_grad_()  # (images, H, W, 3·out)
        with torch.enable_grad():
            out = mix(projections, leaves, g)
        found = torch.autograd.grad(out, [projections, *sought], grad[rows])
        d_projections = found[0].flatten(0, 2)  # (images·H·W, 3·out)
        if wanted[0]:
            d_x[rows] = (d_projections @ weight).view(*projections.shape[:3], -1).permute(0, 3, 1, 2)
        d_weight.addmm_(d_projections.T, part.permute(0, 2, 3, 1).flatten(0, 2))
        d_bias += d_projections.sum(0)
        for total, more in zip(d_sought, found[1:], strict=True):
            total += more
    sums = iter(d_sought)
    d_mixing = [next(sums) if t is not None and t.requires_grad else None for t in leaves]
    return [d_x if wanted[0] else None, d_weight, d_bias if bias is not None else None, *d_mixing]
