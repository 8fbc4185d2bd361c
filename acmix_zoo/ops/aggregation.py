"""SAN's aggregation: a weighted sum over the k×k neighbours of every position, with weights for every position.

    y[b, c, i] = Σ_j weight[b, j, c mod wc, i] · value[b, c, i + j]

j runs over the k² offsets of a window in a feature map with a reflected border. Groups of channels share a weight, and
they do so **interleaved**: channel c uses weight c mod wc, not c // share. Channels 0, wc, 2·wc, … have one in common.

`aggregate_reference` is this formula, written as loops. `aggregate` computes the same with one of the two backends: a
loop over the offsets on a CPU (`backends/offset_sums.py`), strided windows on a GPU (`backends/window_sums.py`).

Source: "Exploring Self-attention for Image Recognition" (SAN), CVPR 2020, whose released code is a CUDA kernel.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.backends.offset_sums import offset_sums, offset_sums_backward
from acmix_zoo.ops.backends.window_sums import window_sums, window_sums_backward
from acmix_zoo.ops.derivatives import is_transformed, needs_plain_gradients, plain_gradients
from acmix_zoo.ops.memory_format import detect_memory_format
from acmix_zoo.ops.reflect import reflect_pad
from acmix_zoo.ops.tracing import constant_size, is_exporting, unflatten

# Size of the values in one chunk of the batch on a CPU.
_CHUNK_BYTES = 3 << 19


def aggregate(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Return the weighted sum of the k×k neighbours of every position, without unfolding the value.

    Args:
        value: (B, C, H, W).
        weight: (B, k²·wc, H, W), channels ordered (k², wc). C is a multiple of wc.
        kernel: the side length k; odd.

    Returns:
        (B, C, H, W).

    Raises:
        ValueError: the shapes do not match.
    """
    _check_shapes(value, weight, kernel)
    weight = weight.to(value.dtype)  # under autocast, the result of a softmax is in float32
    if is_exporting() or is_transformed(value, weight):
        return aggregate_plain(value, weight, kernel)
    if not torch.compiler.is_compiling():
        return _Aggregate.apply(value, weight, kernel)  # type: ignore[no-any-return]
    if value.device.type == "cpu":  # as one operator, because a compiler would unroll the loop over the offsets
        return torch.ops.acmix_zoo.aggregate(value, weight, kernel)  # type: ignore[no-any-return]
    return aggregate_plain(value, weight, kernel)


def aggregate_reference(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Compute `aggregate` by loops over positions and offsets. It defines the result; use it in tests only."""
    _check_shapes(value, weight, kernel)
    b, c, h, w = value.shape
    n_shared = weight.shape[1] // kernel**2
    out = []
    for channel in range(c):
        for y in range(h):
            for x in range(w):
                total = value.new_zeros(b)
                for j in range(kernel**2):
                    row = _reflected(y + j // kernel - kernel // 2, h)
                    col = _reflected(x + j % kernel - kernel // 2, w)
                    total = total + weight[:, j * n_shared + channel % n_shared, y, x] * value[:, channel, row, col]
                out.append(total)
    return torch.stack(out, 1).view(b, c, h, w)


def _reflected(position: int, size: int) -> int:
    """Return a position folded into 0 … size − 1 by reflection that does not repeat the edge."""
    period = max(2 * size - 2, 1)
    return size - 1 - abs(position % period - (size - 1))


def aggregate_plain(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Compute `aggregate` with plain operators.

    They can be exported, compiled for a GPU, transformed by `torch.func` and differentiated any number of times.
    """
    h, w = weight.shape[2:]
    n_shared = weight.shape[1] // kernel**2
    exact = torch.promote_types(value.dtype, torch.float32)
    weights = unflatten(weight.to(exact), 1, (kernel**2, n_shared))  # (B, k², wc, H, W)
    padded = reflect_pad(value.to(exact), kernel // 2)
    values = unflatten(padded, 1, (value.shape[1] // n_shared, n_shared))  # (B, share, wc, H + k − 1, W + k − 1)
    out = values.new_zeros(())
    for j in range(kernel**2):
        y, x = divmod(j, kernel)
        out = out + values[..., y : y + h, x : x + w] * weights[:, j].unsqueeze(1)
    result: Tensor = out.flatten(1, 2).to(value.dtype)  # (B, C, H, W)
    return result


def _check_shapes(value: Tensor, weight: Tensor, kernel: int) -> None:
    (b, c, h, w), found = (tuple(map(constant_size, t.shape)) for t in (value, weight))
    n_shared, rest = divmod(found[1], kernel**2)
    if kernel % 2 == 0 or rest or found != (b, found[1], h, w) or not n_shared or c % n_shared:
        raise ValueError(
            f"`aggregate` got a weight of shape {tuple(weight.shape)} with kernel={kernel} for a value of shape "
            f"{tuple(value.shape)}. Expected an odd kernel and a weight of shape ({b}, {kernel}²·wc, {h}, {w}), where "
            f"wc divides {c}. Check the number of channels of the weight."
        )


# ---- in chunks of the batch


def _run_chunks(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
    """Return the sums (B, C, H, W), computed chunk by chunk."""
    sums = window_sums if _is_launch_bound(value) else offset_sums
    out, size = torch.empty_like(value, memory_format=detect_memory_format(value)), _chunk_size(value)
    for o, v, w in zip(*(t.split(size) for t in (out, value, weight)), strict=True):
        o.copy_(sums(v, w, kernel))
    return out


def _run_chunks_backward(grad: Tensor, value: Tensor, weight: Tensor, kernel: int) -> tuple[Tensor, Tensor]:
    """Return the gradients of value and weight, computed chunk by chunk."""
    backward = window_sums_backward if _is_launch_bound(value) else offset_sums_backward
    d_value, d_weight = (torch.empty_like(t, memory_format=detect_memory_format(t)) for t in (value, weight))
    tensors = (d_value, d_weight, grad, value, weight)
    for d_v, d_w, g, v, w in zip(*(t.split(_chunk_size(value)) for t in tensors), strict=True):
        for target, source in zip((d_v, d_w), backward(g, v, w, kernel), strict=True):
            target.copy_(source)
    return d_value, d_weight


def _chunk_size(value: Tensor) -> int:
    """Return the number of images to process at a time, so that a CPU's cache holds them. A GPU processes all."""
    if value.device.type != "cpu":
        return max(len(value), 1)
    return max(_CHUNK_BYTES // max(value.shape[1:].numel() * max(value.element_size(), 4), 1), 1)


def _is_launch_bound(value: Tensor) -> bool:
    """Return whether launching kernels would dominate a loop over the offsets, as on every device but a CPU."""
    return value.device.type != "cpu"


# ---- autograd, outside and inside compiled graphs


class _Aggregate(torch.autograd.Function):
    """`aggregate` with its gradient, outside compiled graphs."""

    generate_vmap_rule = True  # under vmap, this is only called with tensors that are not batched

    @staticmethod
    def forward(value: Tensor, weight: Tensor, kernel: int) -> Tensor:
        return _run_chunks(value, weight, kernel)

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
            return *_plain_gradients(ctx, grad), None
        value, weight = ctx.saved_tensors
        return *_run_chunks_backward(grad, value, weight, ctx.kernel), None


def _plain_gradients(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None]:
    """Return the gradients of value and weight, differentiably."""

    def plain(value: Tensor, weight: Tensor) -> Tensor:
        return aggregate_plain(value, weight, ctx.kernel)

    d_value, d_weight = plain_gradients(plain, ctx.saved_tensors, ctx.needs_input_grad[:2], grad)
    return d_value, d_weight


_operator = torch.library.custom_op("acmix_zoo::aggregate", _run_chunks, mutates_args=())
_backward_operator = torch.library.custom_op("acmix_zoo::aggregate_backward", _run_chunks_backward, mutates_args=())


@_operator.register_fake
def _fake(value, weight, kernel):  # type: ignore[no-untyped-def]
    return torch.empty_like(value, memory_format=detect_memory_format(value))


@_backward_operator.register_fake
def _fake_backward(grad, value, weight, kernel):  # type: ignore[no-untyped-def]
    return tuple(torch.empty_like(t, memory_format=detect_memory_format(t)) for t in (value, weight))


def _gradient(ctx: Any, grad: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
    if needs_plain_gradients(grad):
        return *_plain_gradients(ctx, grad), None
    return *torch.ops.acmix_zoo.aggregate_backward(grad, *ctx.saved_tensors, ctx.kernel), None


_operator.register_autograd(_gradient, setup_context=_Aggregate.setup_context)
