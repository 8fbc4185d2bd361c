"""The ACmix operator: self-attention and convolution that share one set of projections. Start reading here.

ACmix has two stages (the names are the paper's):

    stage I     q, k, v = project(x)                          one 1×1 convolution, most of the arithmetic
    stage II    out = alpha · attention(q, k, v) + convolution(q, k, v)

`acmix_plain` is these two lines, in operators that autograd records. `acmix` computes the same function, but decides
how: on a CPU, a large batch is processed in chunks (`chunks.py`), and a compiled graph contains the layer as a single
operator (`custom_op.py`). `combine_paths` is stage II. Its two paths are defined in `local_attention.py` and
`shift_conv.py`. The factor beta of the convolution is already part of its kernels.

Source: "On the Integration of Self-Attention and Convolution", CVPR 2022.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.chunks import run_in_chunks
from acmix_zoo.ops.derivatives import is_transformed
from acmix_zoo.ops.dispatch import keeps_projections, plan_batch
from acmix_zoo.ops.local_attention import local_attention
from acmix_zoo.ops.projection import project
from acmix_zoo.ops.shift_conv import grouped_conv
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.ops.tracing import is_exporting, unflatten


class Geometry(NamedTuple):
    """The sizes of a layer that its tensors do not reveal.

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


class PathTensors(NamedTuple):
    """What stage II needs besides the projections. With out = heads·d channels:

    Attributes:
        positions: position encoding (H, W, d), or None for a layer without attention.
        fc: mixing matrix of the convolution, or None if it is part of `kernels`, see `conv_factors`.
        kernels: kernels of the grouped convolution, or None for a layer without convolution.
        alpha: factor of the attention, (1,) or (out,). None for a layer with only one path.
        offset: (out,), added to the convolution, or None. `deploy` uses it for a folded batch norm.
    """

    positions: Tensor | None = None
    fc: Tensor | None = None
    kernels: Tensor | None = None
    alpha: Tensor | None = None
    offset: Tensor | None = None


def acmix(x: Tensor, weight: Tensor, bias: Tensor | None, paths: PathTensors, geometry: Geometry) -> Tensor:
    """Return `alpha · attention + convolution` of the projections of x.

    Args:
        x: input (B, C, H, W), in any memory format.
        weight, bias: of the projection, (3·out, C) and (3·out,). Rows are ordered (d, {q, k, v}, heads).
        paths: the other tensors of the layer.
        geometry: the sizes of the layer.

    Returns:
        (B, out, ceil(H/stride), ceil(W/stride)), channels_last in memory.
    """
    if is_exporting() or is_transformed(x, weight, bias, *paths):
        return acmix_plain(x, weight, bias, paths, geometry)
    device = x.device.type
    if torch.compiler.is_compiling() and device == "cpu":
        keep = torch.is_grad_enabled() and keeps_projections(x.shape[1])
        return torch.ops.acmix_zoo.acmix(x, weight, bias, *paths, *geometry, keep)[0]  # type: ignore[no-any-return]
    window = SlidingWindow(*geometry[1:])
    plan = plan_batch(x.shape, len(weight) // 3, window, itemsize=x.element_size(), device=device)
    is_one_chunk = plan.chunk_size >= x.shape[0] and not torch.is_grad_enabled()
    if plan.kept == "everything" or is_one_chunk:
        return acmix_plain(x, weight, bias, paths, geometry)
    stage_two = partial(combine_paths, geometry=geometry)
    return run_in_chunks(
        stage_two, plan.chunk_size, x, weight, bias, paths, keep_projections=plan.kept == "projections"
    )


def acmix_plain(
    x: Tensor, weight: Tensor, bias: Tensor | None, paths: Sequence[Tensor | None], geometry: Geometry
) -> Tensor:
    """Compute `acmix` for the complete batch at once, in operators that autograd records."""
    return combine_paths(project(x, weight, bias), paths, geometry)


def combine_paths(projections: Tensor, paths: Sequence[Tensor | None], geometry: Geometry) -> Tensor:
    """Return `alpha · attention + convolution` of the projections: stage II.

    Args:
        projections: (B, H, W, 3·out), of `project`.
        paths: the fields of `PathTensors`.
        geometry: the sizes of the layer.

    Returns:
        (B, out, ceil(H/stride), ceil(W/stride)), channels_last in memory.
    """
    positions, fc, kernels, alpha, offset = paths
    projections = unflatten(projections, 3, (-1, 3 * geometry.heads))  # (B, H, W, d, 3·heads)
    results = []  # of one path or two, (B, Ho, Wo, out)
    if kernels is not None:
        maps = projections if fc is None else F.linear(projections, fc.to(projections.dtype))
        results.append(grouped_conv(maps, kernels, offset, stride=geometry.stride, dilation=geometry.dilation))
    if positions is not None:
        results.append(attend(projections, positions, geometry).flatten(3))
    # Attention orders its channels (heads, d) and convolution (d, heads). Like the authors, add them as they are.
    out = results[0] if alpha is None else torch.addcmul(results[0], results[1], alpha.to(projections.dtype))
    return out.permute(0, 3, 1, 2)


def attend(projections: Tensor, positions: Tensor, geometry: Geometry) -> Tensor:
    """Return the result (B, Ho, Wo, heads, d) of the attention path, for projections (B, H, W, d, 3·heads).

    The projections are split before they are transposed. Autograd then concatenates the three gradients in the layout
    of the projections and adds the gradient of the convolution in place. Any other order of views costs one or two more
    copies.
    """
    q, k, v = (part.transpose(3, 4) for part in projections.split(geometry.heads, 4))  # 3 × (B, H, W, heads, d)
    _, kernel, stride, dilation = geometry
    return local_attention(q, k, v, positions, kernel=kernel, stride=stride, dilation=dilation)
