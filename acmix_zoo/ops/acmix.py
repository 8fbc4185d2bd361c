"""The ACmix operator: self-attention and convolution that share one set of projections. Start reading here.

ACmix has two stages, which the paper calls stage I and stage II:

    q, k, v = project(x)                                              a 1×1 convolution, most of the arithmetic
    out = alpha · attention(q, k, v) + beta · convolution(q, k, v)    two cheap ways to use its result

`acmix_plain` is these two lines. `acmix` computes the same, but on a CPU it processes a large batch in chunks
(`chunks.py`) and becomes a single operator of a compiled graph (`custom_op.py`). `combine_paths` is stage II. The two
paths are defined in `local_attention.py` and `shift_conv.py`. Beta does not appear in this file, because the weights of
the convolution have already been multiplied by it.

Source: "On the Integration of Self-Attention and Convolution", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import IntEnum
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter

from acmix_zoo.ops.backends.native.layer import has_gradients, is_supported, keeps_threads_busy, unsupported_reason
from acmix_zoo.ops.chunks import run_in_chunks
from acmix_zoo.ops.derivatives import is_transformed
from acmix_zoo.ops.dispatch import forced_backend, plan_batch, should_keep_projections
from acmix_zoo.ops.local_attention import local_attention
from acmix_zoo.ops.projection import project
from acmix_zoo.ops.shift_conv import grouped_conv
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.ops.tracing import is_exporting, unflatten


class Geometry(NamedTuple):
    """The sizes of a layer that do not follow from the shapes of its tensors.

    Attributes:
        heads: number of attention heads.
        kernel_att: side length of the attention window; odd.
        stride: distance between neighbouring outputs of both paths. Keys and values are not subsampled.
        dilation: distance between neighbouring keys of the window, and between neighbouring taps of the convolution.
    """

    heads: int
    kernel_att: int
    stride: int
    dilation: int


def attention_window(geometry: Geometry) -> SlidingWindow:
    """Return the window that every query attends to."""
    return SlidingWindow(geometry.kernel_att, geometry.stride, geometry.dilation)


class PathTensors(NamedTuple):
    """The tensors that stage II needs besides the projections, for out = heads·d channels.

    Attributes:
        positions: position encoding (H, W, d), or None for a layer without attention.
        fc: mixing matrix of the convolution, or None if it is part of `kernels`, see `conv_factors`.
        kernels: kernels of the grouped convolution, or None for a layer without convolution.
        alpha: factor of the attention, (1,) or (out,). None for a layer with only one path.
        offset: (out,), added to the convolution, or None. A deployed layer has one from its folded batch norm.
    """

    positions: Tensor | None = None
    fc: Tensor | None = None
    kernels: Tensor | None = None
    alpha: Tensor | None = None
    offset: Tensor | None = None


class Keep(IntEnum):
    """What `torch.ops.acmix_zoo.acmix` keeps of the projections for the gradient, and in which layout."""

    NOTHING = 0
    PROJECTIONS = 1  # (B, H, W, 3·out), as `project` returns them
    NATIVE = 2  # (B, H, W, …), the layout of the native library


def acmix(x: Tensor, weight: Tensor, bias: Tensor | None, paths: PathTensors, geometry: Geometry) -> Tensor:
    """Return the output of an ACmix layer, computed in the way that is best for the device and the batch.

    Args:
        x: input (B, C, H, W), in any memory format.
        weight, bias: projection weight and bias, (3·out, C) and (3·out,). Rows are ordered (d, {q, k, v}, heads).
        paths: the other tensors of the layer.
        geometry: the sizes of the layer.

    Returns:
        (B, out, ceil(H/stride), ceil(W/stride)), channels_last in memory.
    """
    if is_exporting() or is_transformed(x, weight, bias, *paths):  # only plain operators support these
        return acmix_plain(x, weight, bias, paths, geometry)
    device = x.device.type
    keep_projections = torch.is_grad_enabled() and should_keep_projections(x.shape[1])
    if torch.compiler.is_compiling() and device == "cpu":
        # The backend is chosen when the graph runs. This only says in which layout it keeps the projections.
        has_one_dtype = all(t is None or t.dtype == x.dtype for t in (weight, bias, *paths))
        is_native = has_one_dtype and is_supported(device, x.dtype, geometry.heads) and has_gradients(paths, [True] * 8)
        keep = (Keep.NATIVE if is_native else Keep.PROJECTIONS) if keep_projections else Keep.NOTHING
        return torch.ops.acmix_zoo.acmix(x, weight, bias, *paths, *geometry, keep)[0]  # type: ignore[no-any-return]
    if all(t is None or type(t) in (Tensor, Parameter) for t in (x, weight, bias, *paths)):  # no subclass of a user
        if runs_native(x, weight, bias, paths, geometry):
            is_kept = keep_projections and has_gradients(paths, [True] * 8) and keeps_threads_busy(len(x))
            keep = Keep.NATIVE if is_kept else Keep.NOTHING
            return torch.ops.acmix_zoo.acmix(x, weight, bias, *paths, *geometry, keep)[0]  # type: ignore[no-any-return]
    window = attention_window(geometry)
    plan = plan_batch(x.shape, len(weight) // 3, window, itemsize=x.element_size(), device=device)
    has_nothing_to_save = plan.chunk_size >= x.shape[0] and not torch.is_grad_enabled()  # one chunk, no gradient
    if plan.kept == "everything" or has_nothing_to_save:
        return acmix_plain(x, weight, bias, paths, geometry)
    stage_two = partial(combine_paths, geometry=geometry)
    return run_in_chunks(
        stage_two, plan.chunk_size, x, weight, bias, paths, keep_projections=plan.kept == "projections"
    )


def runs_native(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Sequence[Tensor | None], geometry: Geometry
) -> bool:
    """Return whether the native library computes `acmix`: no other backend is forced, and it supports the tensors."""
    return forced_backend() in (None, "native") and unsupported_reason(x, weight, bias, paths, geometry.heads) is None


def acmix_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Sequence[Tensor | None], geometry: Geometry
) -> Tensor:
    """Compute `acmix` for the complete batch at once, in operators that autograd records."""
    return combine_paths(project(x, weight, bias), paths, geometry)


def combine_paths(projections: Tensor, paths: Sequence[Tensor | None], geometry: Geometry) -> Tensor:
    """Return `alpha · attention + convolution` of the projections, which is stage II.

    Args:
        projections: the result of `project`, (B, H, W, 3·out).
        paths: the fields of `PathTensors`.
        geometry: the sizes of the layer.

    Returns:
        (B, out, ceil(H/stride), ceil(W/stride)), channels_last in memory.
    """
    positions, fc, kernels, alpha, offset = paths
    projections = unflatten(projections, 3, (-1, 3 * geometry.heads))  # (B, H, W, d, 3·heads)
    results = []  # one for each path, (B, Ho, Wo, out)
    if kernels is not None:
        maps = projections if fc is None else F.linear(projections, fc.to(projections.dtype))
        results.append(grouped_conv(maps, kernels, offset, stride=geometry.stride, dilation=geometry.dilation))
    if positions is not None:
        results.append(attend(projections, positions, geometry).flatten(3))
    # The channels of the attention are ordered (heads, d), those of the convolution (d, heads). The authors add them
    # without reordering. Their weights would give different results if they were reordered here.
    out = results[0] if alpha is None else torch.addcmul(results[0], results[1], alpha.to(projections.dtype))
    return out.permute(0, 3, 1, 2)


def attend(projections: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """Return the attention (B, Ho, Wo, heads, d) of projections (B, H, W, d, 3·heads).

    The projections are split before they are transposed. Autograd then concatenates the three gradients in the layout
    of the projections and adds the gradient of the convolution in place. Any other order of views costs one or two more
    copies.
    """
    q, k, v = (part.transpose(3, 4) for part in projections.split(geometry.heads, 4))  # 3 × (B, H, W, heads, d)
    return local_attention(q, k, v, positions, attention_window(geometry))
