"""Process a batch in chunks, and recompute each chunk in the backward pass.

For the gradient, a layer that runs this way keeps little more than its input and output. On a CPU, the intermediate
results of a chunk also stay in the caches, so recomputing them is cheap.

Stage II of the layer is passed in as a function `stage_two(projections, paths) -> out`, where `paths` are tensors that
do not depend on the batch.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.derivatives import needs_plain_gradients, plain_gradients
from acmix_zoo.ops.dispatch import forced_backend, use_backend
from acmix_zoo.ops.projection import project, project_backward

StageTwo = Callable[[Tensor, Sequence[Tensor | None]], Tensor]


def run_in_chunks(
    stage_two: StageTwo,
    chunk_size: int,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Sequence[Tensor | None],
    *,
    keep_projections: bool,
) -> Tensor:
    """Return `stage_two(project(x, weight, bias), paths)`, computed for `chunk_size` images at a time.

    If `keep_projections` is set, the backward pass uses the projections of the forward pass. Otherwise it projects x
    again.
    """
    outputs: tuple[Tensor, ...] = _Chunked.apply(stage_two, chunk_size, keep_projections, x, weight, bias, *paths)
    return outputs[0]


class _Chunked(torch.autograd.Function):
    """`run_in_chunks` with its gradient."""

    generate_vmap_rule = True  # under vmap, this is only called with tensors that are not batched

    @staticmethod
    def forward(
        stage_two: StageTwo,
        chunk_size: int,
        keep_projections: bool,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        *paths: Tensor | None,
    ) -> tuple[Tensor, ...]:
        """Return the output (B, out, Ho, Wo), followed by each chunk's projections (images, H, W, 3·out) if kept."""
        out, kept = None, []
        for i, chunk in enumerate(x.split(chunk_size)):
            projections = project(chunk, weight, bias)  # (images, H, W, 3·out)
            result = stage_two(projections, paths)  # (images, out, Ho, Wo)
            if out is None:
                out = result.new_empty((len(x), *result.shape[1:])).to(memory_format=torch.channels_last)
            out[i * chunk_size : i * chunk_size + len(chunk)] = result
            if keep_projections:
                kept.append(projections)
            del projections, result  # before those of the next chunk are allocated
        assert out is not None  # even an empty batch has one chunk
        return out, *kept

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.stage_two, ctx.chunk_size, _, *tensors = inputs
        ctx.n_tensors, ctx.backend = len(tensors), forced_backend()
        ctx.save_for_backward(*tensors, *output[1:])
        ctx.mark_non_differentiable(*output[1:])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None, *_: Tensor | None) -> tuple[Any, ...]:
        if grad is None:
            return tuple(None for _ in ctx.needs_input_grad)
        saved, needed = ctx.saved_tensors, ctx.needs_input_grad[3:]
        tensors, kept = saved[: ctx.n_tensors], saved[ctx.n_tensors :]
        x, weight, bias, *paths = tensors
        with use_backend(ctx.backend):  # this may run in a different thread, or after the caller's `use_backend`
            if needs_plain_gradients(grad):
                found = plain_gradients(_run_at_once(ctx.stage_two), tensors, needed, grad)
            else:
                found = chunked_backward(ctx.stage_two, ctx.chunk_size, grad, kept, x, weight, bias, paths, needed)
        return None, None, None, *found


def _run_at_once(stage_two: StageTwo) -> Callable[..., Tensor]:
    """Return the layer as a plain function of its tensors."""
    return lambda x, weight, bias, *paths: stage_two(project(x, weight, bias), paths)


def chunked_backward(
    stage_two: StageTwo,
    chunk_size: int,
    grad: Tensor,
    kept: Sequence[Tensor],
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    paths: Sequence[Tensor | None],
    needed: Sequence[bool],
) -> list[Tensor | None]:
    """Return the gradients of x, weight, bias and each of `paths`, computed chunk by chunk.

    Sums over chunks are at least in float32.

    Args:
        stage_two, chunk_size, x, weight, bias, paths: as in `run_in_chunks`.
        grad: gradient of the output, (B, out, Ho, Wo).
        kept: the projections of each chunk, or nothing, in which case they are recomputed.
        needed: whether x, weight, bias and each of `paths` need a gradient. Path tensors that need none get None.
    """
    leaves = [t if t is None else t.detach().requires_grad_(need) for t, need in zip(paths, needed[3:], strict=True)]
    trained = [t for t in leaves if t is not None and t.requires_grad]
    d_x, d_weight, d_bias = torch.empty_like(x), _zeros_for_sum(weight), _zeros_for_sum(weight[:, 0])
    d_trained = [_zeros_for_sum(t) for t in trained]
    for i, chunk in enumerate(x.split(chunk_size)):
        images = slice(i * chunk_size, i * chunk_size + len(chunk))
        projections = kept[i] if kept else project(chunk, weight, bias)
        projections = projections.detach().requires_grad_()  # (images, H, W, 3·out)
        with torch.enable_grad():
            out = stage_two(projections, leaves)
        d_projections, *d_paths = torch.autograd.grad(out, [projections, *trained], grad[images])
        d_chunk, d_chunk_weight = project_backward(d_projections, chunk, weight, needs_x=needed[0])
        if d_chunk is not None:
            d_x[images] = d_chunk
        d_weight += d_chunk_weight
        d_bias += d_projections.flatten(0, 2).sum(0, dtype=d_bias.dtype)
        for total, d_path in zip(d_trained, d_paths, strict=True):
            total += d_path
    sums = iter(total.to(t.dtype) for total, t in zip(d_trained, trained, strict=True))
    d_paths_or_none = [next(sums) if t is not None and t.requires_grad else None for t in leaves]
    d_weight, d_bias = d_weight.to(weight.dtype), d_bias.to(weight.dtype)
    return [d_x if needed[0] else None, d_weight, d_bias if bias is not None else None, *d_paths_or_none]


def _zeros_for_sum(t: Tensor) -> Tensor:
    """Return zeros in the shape of t, at least in float32, because sums over many chunks need the precision."""
    return torch.zeros_like(t, dtype=torch.promote_types(t.dtype, torch.float32))
