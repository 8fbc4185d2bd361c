"""The attention weights of one position of one layer: to which positions of its input it attends, and how strongly.

The fast backends never materialise these weights, so they are computed here from the projections of the layer, as in
the definition of each layer. The tests compare the weighted sum of the values with the attention path of the layer.
"""

from __future__ import annotations

from functools import singledispatch
from typing import Any, Literal, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from acmix_zoo.explain.logits import check_image, evaluation
from acmix_zoo.explain.path_outputs import LayerCall, acmix_layers, replaced_outputs, sum_channels
from acmix_zoo.layers import ACmix2d, PairwiseSAM, PatchwiseSAM, ReducedACmix, WindowACmix
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.reflect import reflect_index
from acmix_zoo.ops.windows import roll, window_masks, window_partition

Position = tuple[int, int]
Pixel = tuple[int, int] | Literal["token"]
"""(x, y) in the image that the network sees, or the class token of PVT."""


class PixelAttention(NamedTuple):
    """The attention of one layer for one pixel of the image.

    Attributes:
        layer: the name of the layer.
        pixel: (x, y) in the image that the network sees, or "token" for the class token.
        query: (row, column) of the position of the layer's output whose cell contains the pixel, or None for the token.
        grid: (rows, columns) of the layer's output.
        weights: (heads, H, W), over the positions of the layer's keys. Those of `PatchwiseSAM` may be negative and do
            not sum to one. SAN's groups of channels with one attention weight count as heads.
    """

    layer: str
    pixel: Pixel
    query: Position | None
    grid: Position
    weights: Tensor


def pixel_attention(model: nn.Module, image: Tensor, layer: str, pixel: Pixel) -> PixelAttention:
    """Return the attention weights of a layer for a pixel of the image.

    Args:
        model: a network with ACmix layers. It runs in eval mode and is not changed.
        image: (1, C, H, W), preprocessed.
        layer: the name of an ACmix layer with an attention path.
        pixel: (x, y), from 0 to W − 1 and H − 1, or "token" for the class token of PVT's last stage.

    Raises:
        ValueError: there is no such layer, it has no attention path or no class token, the pixel is outside the image,
            or the image is not one image.
    """
    check_image(image)
    names = [name for name, module in acmix_layers(model).items() if module.paths != "convolution"]
    if layer not in names:
        expected = f"Expected one of {', '.join(names)}" if names else "The network has no layer with attention"
        raise ValueError(f"there is no attention in a layer {layer!r}. {expected}. Choose another layer")
    height, width = image.shape[2:]
    if pixel != "token" and not (0 <= pixel[0] < width and 0 <= pixel[1] < height):
        raise ValueError(
            f"the pixel {pixel[0]},{pixel[1]} is outside the image. Expected X,Y from 0,0 to {width - 1},{height - 1}, "
            "in the image that the network sees. Choose a pixel within it"
        )
    calls: list[LayerCall] = []

    def record(call: LayerCall) -> Tensor:
        if call.name == layer:
            calls.append(call)
        return call.output

    with evaluation(model), torch.no_grad():
        with replaced_outputs(model, record):
            model(image)
        call = calls[0]  # of a layer that the network uses several times, the first
        h, w = sum_channels(call, call.output).positions.shape[1:]
        if pixel == "token":
            query = None
            if not isinstance(call.layer, ReducedACmix) or call.inputs[0].shape[1] == h * w:
                raise ValueError(
                    f"layer {layer} has no class token. Expected a layer of PVT's last stage. Choose such a layer, or "
                    "a pixel X,Y"
                )
        else:
            query = (pixel[1] * h // height, pixel[0] * w // width)
        weights = attention_weights(call.layer, *call.inputs, query=query)
    return PixelAttention(layer, pixel, query, (h, w), weights)


@singledispatch
def attention_weights(layer: nn.Module, *inputs: Any, query: Position | None) -> Tensor:
    """Return the attention weights (heads, H, W) of a position of a layer's output, for an input of one image.

    Args:
        layer: an ACmix layer with an attention path.
        inputs: those of its `forward`.
        query: (row, column) of the position in the output, or None for the class token of a `ReducedACmix`.
    """
    raise TypeError(f"{type(layer).__name__} is not an ACmix layer. Expected a layer of acmix_zoo. Choose one")


@attention_weights.register
def _(layer: ACmix2d, x: Tensor, query: Position) -> Tensor:
    h, w = x.shape[2:]
    projections = layer.qkv(x.permute(0, 2, 3, 1)).unflatten(3, (-1, 3 * layer.heads))  # (1, H, W, d, 3·heads)
    q, k, _ = (part[0].transpose(2, 3) for part in projections.split(layer.heads, 4))  # 3 × (H, W, heads, d)
    pe = position_encoding(layer.position_weight, h, w).to(q.dtype)  # (H, W, d)
    row, column = (n * layer.stride for n in query)
    rows, columns = _window((row, column), (h, w), layer.kernel_att, layer.dilation)
    keys = k[rows][:, columns] + (pe[row, column] - pe[rows][:, columns]).unsqueeze(2)  # (k, k, heads, d)
    logits = torch.einsum("nd,yxnd->nyx", q[row, column] * q.shape[-1] ** -0.5, keys)  # (heads, k, k)
    return _sum_reflections(logits.flatten(1).softmax(1).view_as(logits), rows, columns, (h, w))


@attention_weights.register
def _(layer: WindowACmix, x: Tensor, query: Position) -> Tensor:
    (h, w), (wh, ww) = x.shape[1:3], layer.window
    rows, columns = -(-h // wh), -(-w // ww)  # of windows
    shift = layer.effective_shift(rows, columns)
    padded = F.pad(x, (0, 0, 0, columns * ww - w, 0, rows * wh - h))  # (1, H′, W′, dim)
    # Where in the padded map the positions of each window come from.
    places = torch.arange(rows * wh * columns * ww, device=x.device).view(1, rows * wh, columns * ww)
    places = window_partition(roll(places, (-shift[0], -shift[1])), layer.window)  # (n, L)
    window, position = (int(i) for i in (places == query[0] * columns * ww + query[1]).nonzero()[0])
    projections = layer.qkv(padded).flatten(0, 2)[places[window]]  # (L, 3·dim)
    q, k, _ = projections.unflatten(1, (-1, 3, layer.heads)).permute(2, 3, 0, 1)  # 3 × (heads, L, d)
    bias = layer.position_bias()[0, :, position]  # (heads, L)
    if any(shift) and layer.shift_mask is not None:
        bias = bias + window_masks(layer.shift_mask, rows, columns)[window, :, position]
    logits = torch.einsum("nd,nld->nl", q[:, position] * q.shape[-1] ** -0.5, k) + bias
    weights = logits.new_zeros(layer.heads, places.numel())
    weights[:, places[window]] = logits.softmax(1)
    return weights.view(layer.heads, rows * wh, columns * ww)[:, :h, :w]  # without the padding


@attention_weights.register
def _(layer: ReducedACmix, x: Tensor, size: tuple[int, int], query: Position | None) -> Tensor:
    prefix = x.shape[1] - size[0] * size[1]
    place = 0 if query is None else prefix + query[0] * size[1] + query[1]
    q = layer.q(x)[0, place].unflatten(0, (layer.heads, -1))  # (heads, d)
    keys = layer.reduced_tokens(x, size)  # (1, L′, dim)
    k = layer.kv(keys)[0].unflatten(1, (2, layer.heads, -1))[:, 0]  # (L′, heads, d)
    weights = (torch.einsum("nd,lnd->nl", q, k) * q.shape[1] ** -0.5).softmax(1)  # (heads, L′)
    grid = (-(-size[0] // layer.reduction), -(-size[1] // layer.reduction))
    return weights[:, prefix:].unflatten(1, grid)  # type: ignore[no-any-return]  # without the class token


@attention_weights.register(PairwiseSAM)
@attention_weights.register(PatchwiseSAM)
def _(layer: PairwiseSAM | PatchwiseSAM, x: Tensor, query: Position) -> Tensor:
    size = (x.shape[2], x.shape[3])
    weights = layer.attention_weights(layer.conv1(x), layer.conv2(x))[0, :, query[0], query[1]]  # (k²·wc,)
    weights = weights.view(layer.kernel, layer.kernel, layer.shared).permute(2, 0, 1)  # (wc, k, k)
    return _sum_reflections(weights, *_window(query, size, layer.kernel), size)


def _window(centre: Position, size: Position, kernel: int, dilation: int = 1) -> tuple[Tensor, Tensor]:
    """Return the rows and columns of a kernel × kernel window around a position, reflected at the border."""
    offsets = (torch.arange(kernel) - kernel // 2) * dilation
    rows, columns = (reflect_index(offsets + n, length) for n, length in zip(centre, size, strict=True))
    return rows, columns


def _sum_reflections(weights: Tensor, rows: Tensor, columns: Tensor, size: Position) -> Tensor:
    """Place the weights (heads, k, k) of a window in a feature map (heads, H, W). A position that the window contains
    several times, because of the reflection, gets the sum."""
    places = (rows.unsqueeze(1) * size[1] + columns).flatten().to(weights.device)  # (k²,)
    out = weights.new_zeros(len(weights), size[0] * size[1]).index_add_(1, places, weights.flatten(1))
    return out.unflatten(1, size)  # type: ignore[no-any-return]
