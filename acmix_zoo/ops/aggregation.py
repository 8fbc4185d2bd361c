"""SAN's aggregation: every position sums its k×k neighbours, weighted for it alone; channels share the weights.

`y[b, c, i] = Σ_j weight[b, j, c mod wc, i] · value[b, c, i + j]` over a border continued by reflection. Channels share
weights **interleaved** (c mod wc, not c // share): channel 0, wc, 2·wc, … have one in common.

Source: "Exploring Self-attention for Image Recognition" (SAN), CVPR 2020, whose released code has it as a CUDA kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.backends.window_sums import windowed_gradients, windowed_sums
from acmix_zoo.ops.derivatives import is_transformed, needs_plain_gradients, plain_gradients
from acmix_zoo.ops.reflect import reflected_range
from acmix_zoo.ops.tracing import fixed, is_exporting, unflatten

# Positions of a map up to which channels side by side are the faster layout on a CPU (at 7² three times, at 56² the
# other way round, by as much).
_CHANNELS_LAST_UP_TO = 400
# What the values of a chunk of the batch may take on a CPU.
_CHUNK_BYTES = 3 << 19


def aggregate(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Weighted sums over k×k windows, one offset after the other: nothing of the value is copied k² times.

    Args:
        value: (B, C, H, W).
        weight: (B, k²·wc, H, W), channels ordered (k², wc); C is a multiple of wc.
        kernel: k, odd.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: shapes that do not go together.
    """
    _check(value, weight, kernel)
    weight = weight.to(value.dtype)  # autocast makes float32 of what comes from a softmax
    if is_exporting() or is_transformed(value, weight):
        return aggregate_plain(value, weight, kernel)
    if not torch.compiler.is_compiling():
        return _Aggregate.apply(value, weight, kernel)  # type: ignore[no-any-return]
    if value.device.type != "cpu":
        return aggregate_plain(value, weight, kernel)
    return torch.ops.acmix_zoo.aggregate(value, weight, kernel)  # type: ignore[no-any-return]


def aggregate_reference(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """`aggregate` by loops over positions and offsets, to be read and compared with."""
    _check(value, weight, kernel)
    b, c, h, w = value.shape
    shared = weight.shape[1] // kernel**2
    out = []
    for channel in range(c):
        for y in range(h):
            for x in range(w):
                total = value.new_zeros(b)
                for j in range(kernel**2):
                    at = [_reflected(y + j // kernel - kernel // 2, h), _reflected(x + j % kernel - kernel // 2, w)]
                    total = total + weight[:, j * shared + channel % shared, y, x] * value[:, channel, at[0], at[1]]
                out.append(total)
    return torch.stack(out, 1).view(b, c, h, w)


def _reflected(at: int, size: int) -> int:
    """A position folded into 0 … size − 1, the edge not repeated."""
    period = max(2 * size - 2, 1)
    return size - 1 - abs(at % period - (size - 1))


def _check(value: Tensor, weight: Tensor, kernel: int) -> None:
    (b, c, h, w), found = (tuple(map(fixed, t.shape)) for t in (value, weight))
    shared, rest = divmod(found[1], kernel**2)
    if kernel % 2 == 0 or rest or found != (b, found[1], h, w) or not shared or c % shared:
        raise ValueError(
            f"aggregate: expected weights of ({b}, {kernel}²·wc, {h}, {w}) with an odd kernel and wc a divisor of {c}, "
            f"got {tuple(weight.shape)} for a value of {tuple(value.shape)}"
        )


def reflect_pad(x: Tensor, by: int) -> Tensor:
    """(B, C, H, W) → (B, C, H + 2·by, W + 2·by), continued by reflection; maps smaller than the border too.

    By slices, whose gradient is a sum in a fixed order; the gradient of CUDA's reflection pad is not.
    """
    for dim in (2, 3):
        n = x.shape[dim]
        if not is_exporting() and n > by:  # an exported graph must also work for smaller maps
            before, after = x.narrow(dim, 1, by).flip(dim), x.narrow(dim, n - 1 - by, by).flip(dim)
            x = torch.cat([before, x, after], dim)
        else:
            x = x.index_select(dim, reflected_range(-by, n + 2 * by, n, x.device))
    return x


def _unpadded(grad: Tensor, by: int) -> Tensor:
    """The gradient of `reflect_pad`: what the border received is added to where it came from."""
    for dim in (3, 2):
        n = grad.shape[dim] - 2 * by
        if n > by:
            inner = grad.narrow(dim, by, n).clone()
            inner.narrow(dim, 1, by).add_(grad.narrow(dim, 0, by).flip(dim))
            inner.narrow(dim, n - 1 - by, by).add_(grad.narrow(dim, by + n, by).flip(dim))
        else:
            shape = [n if i == dim else side for i, side in enumerate(grad.shape)]
            inner = grad.new_zeros(shape).index_add_(dim, reflected_range(-by, n + 2 * by, n, grad.device), grad)
        grad = inner
    return grad


def aggregate_plain(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Compute `aggregate` with plain operators. They can be exported, compiled for other devices (into one kernel),
    transformed by `torch.func` and differentiated any number of times."""
    h, w = weight.shape[2:]
    shared = weight.shape[1] // kernel**2
    exact = torch.promote_types(value.dtype, torch.float32)
    weights = unflatten(weight.to(exact), 1, (kernel**2, shared))  # (B, k², wc, H, W)
    values = reflect_pad(value.to(exact), kernel // 2)
    values = unflatten(values, 1, (value.shape[1] // shared, shared))  # (B, share, wc, H + k − 1, W + k − 1)
    out = values.new_zeros(())
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        out = out + values[..., y : y + h, x : x + w] * weights[:, j].unsqueeze(1)
    result: Tensor = out.flatten(1, 2).to(value.dtype)  # (B, C, H, W)
    return result


class _Aggregate(torch.autograd.Function):
    """`aggregate` in chunks, used outside compiled graphs."""

    generate_vmap_rule = True  # under vmap, this is only called with tensors that are not batched

    @staticmethod
    def forward(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
        return _forward(value, weight, kernel)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, int], output: Tensor) -> None:
        ctx.save_for_backward(*inputs[:2])
        ctx.kernel = inputs[2]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, Tensor | None, None]:
        if grad is None:
            return None, None, None
        if needs_plain_gradients(grad):
            found = _plain_gradients(ctx, grad)
        else:
            value, weight = ctx.saved_tensors
            found = list(_backward(grad, value, weight, ctx.kernel))
        return found[0], found[1], None


def _plain_gradients(ctx: Any, grad: Tensor) -> list[Tensor | None]:
    def plain(value: Tensor, weight: Tensor) -> Tensor:
        return aggregate_plain(value, weight, ctx.kernel)

    return plain_gradients(plain, ctx.saved_tensors, ctx.needs_input_grad[:2], grad)


def _forward(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    out = torch.empty_like(value, memory_format=_layout(value))
    for o, v, w in zip(*(t.split(_images(value)) for t in (out, value, weight)), strict=True):
        o.copy_(_sums(v, w, kernel))
    return out


def _backward(grad: Tensor, value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    found = tuple(torch.empty_like(t, memory_format=_layout(t)) for t in (value, weight))
    for d_v, d_w, g, v, w in zip(*(t.split(_images(value)) for t in (*found, grad, value, weight)), strict=True):
        for target, source in zip((d_v, d_w), _gradients(g, v, w, kernel), strict=True):
            target.copy_(source)
    return found  # type: ignore[return-value]


def _images(value: Tensor) -> int:
    """How many images at a time: on a CPU as many as stay in its cache together with what is made of them."""
    if value.device.type != "cpu":
        return max(len(value), 1)
    return max(_CHUNK_BYTES // max(value.shape[1:].numel() * max(value.element_size(), 4), 1), 1)


def _saves_launches(value: Tensor) -> bool:
    """Return whether kernel launches would dominate a loop over the offsets, as on every device but a CPU."""
    return value.device.type != "cpu"


def _sums(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    if _saves_launches(value):
        return windowed_sums(reflect_pad(value, kernel // 2), weight, kernel)
    padded, values, weights = _prepared(value, weight, kernel)
    h, w = value.shape[2:]
    out = torch.zeros_like(padded[:, :, :h, :w])  # in the layout of the padded value
    sums = out.unflatten(1, values.shape[1:3])  # (B, share, wc, H, W), a view
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        sums.addcmul_(values[..., y : y + h, x : x + w], weights[:, j].unsqueeze(1))
    return out


def _gradients(grad: Tensor, value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    if _saves_launches(value):
        d_padded, d_weight = windowed_gradients(grad, reflect_pad(value, kernel // 2), weight, kernel)
        return _unpadded(d_padded, kernel // 2), d_weight
    padded, values, weights = _prepared(value, weight, kernel)
    h, w = value.shape[2:]
    layout = torch.contiguous_format if padded.is_contiguous() else torch.channels_last
    grads = grad.to(padded.dtype).contiguous(memory_format=layout)
    grads = grads.unflatten(1, values.shape[1:3])  # (B, share, wc, H, W)
    d_padded, d_weights = torch.zeros_like(padded), torch.empty_like(weights)
    d_values = d_padded.unflatten(1, values.shape[1:3])
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        d_values[..., y : y + h, x : x + w].addcmul_(grads, weights[:, j].unsqueeze(1))
        torch.sum(grads * values[..., y : y + h, x : x + w], 1, out=d_weights[:, j])
    return _unpadded(d_padded, kernel // 2), d_weights.flatten(1, 2)  # (B, C, H, W), (B, k²·wc, H, W)


def _prepared(value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return (padded, its view (B, share, wc, H + k − 1, W + k − 1), weights (B, k², wc, H, W)) in the faster layout.
    The dtype is float32 or higher, because a sum of k² terms in half precision would lose digits with every term."""
    last = value.device.type == "cpu" and value.shape[2:].numel() <= _CHANNELS_LAST_UP_TO
    layout = torch.channels_last if last else torch.contiguous_format
    exact, shared = torch.promote_types(value.dtype, torch.float32), weight.shape[1] // kernel**2
    padded = reflect_pad(value.to(exact), kernel // 2).contiguous(memory_format=layout)
    weights = weight.to(exact).contiguous(memory_format=layout).unflatten(1, (kernel**2, shared))
    return padded, padded.unflatten(1, (value.shape[1] // shared, shared)), weights


def _layout(x: Tensor) -> torch.memory_format:
    last = x.is_contiguous(memory_format=torch.channels_last) and not x.is_contiguous()
    return torch.channels_last if last else torch.contiguous_format


# In compiled graphs on a CPU, use one operator, and one for its gradient, because a compiler would unroll the loops.
_aggregate = torch.library.custom_op("acmix_zoo::aggregate", _forward, mutates_args=())
_aggregate_backward = torch.library.custom_op("acmix_zoo::aggregate_backward", _backward, mutates_args=())


@_aggregate.register_fake
def _(value, weight, kernel):  # type: ignore[no-untyped-def]
    return torch.empty_like(value, memory_format=_layout(value))


@_aggregate_backward.register_fake
def _(grad, value, weight, kernel):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(t, memory_format=_layout(t)) for t in (value, weight))


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    if needs_plain_gradients(grad):
        return *_plain_gradients(ctx, grad), None  # type: ignore[return-value]
    return *torch.ops.acmix_zoo.aggregate_backward(grad, *ctx.saved_tensors, ctx.kernel), None


_aggregate.register_autograd(_gradient, setup_context=_Aggregate.setup_context)
