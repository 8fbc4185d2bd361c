"""The fast backends of `local_attention`, interchangeable and tested against its reference and each other.

* `global_attention` serves small maps: every query sees the whole map, and a key that reflection shows m times gets
  log m added to its logit. Nothing is padded, nothing gathered.
* `tile_attention` cuts the map into tiles of queries; a tile and its halo of keys go through
  `scaled_dot_product_attention` under one band mask, which is the same for every tile.
* `offset_attention` walks over the window's columns with gathers alone. It is slower, but no size in it is rounded to a
  tile, so `torch.export` and ONNX can leave batch, height and width open.

They use one exact identity: `q_i · pe_i` is the same for all j, and softmax drops it, so the keys become `k − pe` and
no position is ever unfolded.

Arguments of all: q (B, Ho, Wo, heads, d), already subsampled by the stride; k, v (B, H, W, heads, d); pe (H, W, d);
kernel, stride, dilation. All return (B, Ho, Wo, heads, d).
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.derivatives import needs_plain_gradients
from acmix_zoo.ops.dispatch import halo
from acmix_zoo.ops.geometry_cache import remembered
from acmix_zoo.ops.reflect import reflected_range, window_index
from acmix_zoo.ops.tracing import at_least, unflatten

# Keys and values of tiles gathered at a time where nothing waits for a gradient.
_TILE_BYTES = 2 << 20


def global_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """One attention of all queries to the whole map."""
    ho, wo = q.shape[1:3]
    h, w = k.shape[1:3]
    mask = remembered(_multiplicity_mask, ho, wo, h, w, kernel, stride, dilation, dtype=q.dtype, device=q.device)
    queries = q.flatten(1, 2).transpose(1, 2)  # (B, heads, Ho·Wo, d)
    keys = _minus_position(k, pe, q.dtype).flatten(1, 2).transpose(1, 2)  # (B, heads, H·W, d)
    values = v.flatten(1, 2).transpose(1, 2)  # (B, heads, H·W, d)
    out = padded_attention(_dense(queries), _dense(keys), _dense(values), mask)
    result: Tensor = out.transpose(1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result


def tile_attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, kernel: int, stride: int, dilation: int, tile: tuple[int, int]
) -> Tensor:
    """Attention by tiles of th×tw queries. The last tiles may overhang: their keys are reflected like any other, their
    queries cropped away at the end."""
    b, ho, wo, heads, d = q.shape
    th, tw = tile
    nh, nw = (ho + th - 1) // th, (wo + tw - 1) // tw
    geometry = (nh, nw, th, tw, k.shape[1], k.shape[2], kernel, stride, dilation)
    if torch.compiler.is_compiling() or (nh * th, nw * tw) != (ho, wo):  # compiled, one graph for both cases
        q = F.pad(q, (0, 0, 0, 0, 0, nw * tw - wo, 0, nh * th - ho))  # (B, nh·th, nw·tw, heads, d)
    queries = q.reshape(b, nh, th, nw, tw, heads, d).permute(0, 1, 3, 5, 2, 4, 6)
    # Copies by name, here and at the end: else a compiler makes a graph where the memory allows a view, one where not.
    queries = queries.clone(memory_format=torch.contiguous_format).view(b * nh * nw, heads, th * tw, d)
    mask = remembered(_band_mask, th, tw, kernel, stride, dilation, dtype=q.dtype, device=q.device)

    half = q.element_size() < pe.element_size()
    k = k if half else _minus_position(k, pe, q.dtype)

    def attended(some: slice) -> Tensor:  # (some of B·nh·nw, heads, th·tw, d)
        keys, values = (_gather(x, geometry, some) for x in (k, v))  # 2 × (some, kh·kw, heads, d)
        if half:
            keys = _minus_tile_position(keys, pe, geometry)
        return padded_attention(queries[some], keys.transpose(1, 2), values.transpose(1, 2), mask)

    if half or torch.is_grad_enabled() or torch.compiler.is_compiling() or q.device.type != "cpu":
        out = attended(slice(None))
    else:  # what a slice gathers stays in the cache
        k, v = k.contiguous(), v.contiguous()  # once for all slices
        some = max(1, _TILE_BYTES // (mask.shape[1] * 2 * heads * d * q.element_size()))
        outs = [attended(slice(i, i + some)) for i in range(0, len(queries), some)]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
    out = out.reshape(b, nh, nw, heads, th, tw, d).permute(0, 1, 4, 2, 5, 3, 6)  # (B, nh, th, nw, tw, heads, d)
    out = out.clone(memory_format=torch.contiguous_format).view(b, nh * th, nw * tw, heads, d)[:, :ho, :wo]
    return out.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else out


def offset_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """Compute attention column by column of the window, at least in float32.

    This uses only plain operators, so it has derivatives of any order and works under any `torch.func` transform.
    """
    rows = window_index(q.shape[1], k.shape[1], kernel, stride, dilation, q.device)  # (k, Ho)
    cols = window_index(q.shape[2], k.shape[2], kernel, stride, dilation, q.device)  # (k, Wo)
    dtype, exact = q.dtype, torch.promote_types(q.dtype, torch.float32)
    keys, values = _minus_position(k, pe, exact)[:, rows], v.to(exact)[:, rows]  # 2 × (B, k, Ho, W, heads, d)
    q = (q.to(exact) * q.shape[-1] ** -0.5).unsqueeze(1)  # (B, 1, Ho, Wo, heads, d)
    logits = torch.stack([(q * keys[:, :, :, col]).sum(-1) for col in cols.unbind()], 2)  # (B, k, k, Ho, Wo, heads)
    weights = unflatten(logits.flatten(1, 2).softmax(1), 1, (kernel, kernel)).unsqueeze(-1)
    columns = [(weights[:, :, x] * values[:, :, :, col]).sum(1) for x, col in enumerate(cols.unbind())]
    return torch.stack(columns).sum(0).to(dtype)  # of k × (B, Ho, Wo, heads, d)


def positions(weight: Tensor, h: int, w: int) -> Tensor:
    """The position encoding of a map: the coordinates (x, y), each from −1 to 1, times weight (d, 2) → (H, W, d), in
    float32 at least: in half precision the difference of two positions would drown."""
    weight = weight.to(torch.promote_types(weight.dtype, torch.float32))
    place = remembered(_coordinates, h, w, dtype=weight.dtype, device=weight.device)
    # Multiply and sum, because autocast would run a matrix product in half precision.
    return place[..., :1] * weight[:, 0] + place[..., 1:] * weight[:, 1]


def _coordinates(h: int, w: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """(H, W, 2)."""

    def axis(n: int) -> Tensor:  # (n,): as torch.linspace gives them; but linspace would fix n in an exported graph
        return torch.arange(n, dtype=dtype, device=device).mul(2).div(at_least(n - 1, 1)).sub(1)

    return torch.stack((axis(w).expand(h, w), axis(h).unsqueeze(1).expand(h, w)), 2)


def _minus_position(k: Tensor, pe: Tensor, dtype: torch.dtype) -> Tensor:
    """k (B, H, W, heads, d) − pe (H, W, d), in pe's precision (float32 at least), rounded once."""
    return (k - pe.unsqueeze(2)).to(dtype)


def _minus_tile_position(keys: Tensor, pe: Tensor, geometry: tuple[int, ...]) -> Tensor:
    """Keys of all tiles (B·nh·nw, kh·kw, heads, d) − pe, for a dtype coarser than pe's.

    Far from the middle of the map, k − pe is too coarse in half precision. Softmax drops what all keys of a tile share,
    so the positions are counted from the tile's middle, in pe's precision, and the difference is rounded once.
    """
    tiles = geometry[0] * geometry[1]
    positions = _gather(pe[None, :, :, None], geometry, slice(tiles))  # (nh·nw, kh·kw, 1, d)
    positions = positions - positions[:, positions.shape[1] // 2].unsqueeze(1)
    return (keys.unflatten(0, (-1, tiles)) - positions).flatten(0, 1).to(keys.dtype)  # type: ignore[no-any-return]


def _gather(x: Tensor, geometry: tuple[int, ...], some: slice) -> Tensor:
    """A map (B, H, W, heads, d) → (some of B·nh·nw, kh·kw, heads, d): the keys of these tiles, the halo included."""
    if torch.compiler.is_compiling():
        # By row and by column: with positions of the flattened map inductor takes ten times as long at symbolic sizes.
        rows, cols = _tile_axes(*geometry, device=x.device)  # (nh, 1, kh, 1), (1, nw, 1, kw)
        return x[:, rows, cols].flatten(3, 4).flatten(0, 2)
    if torch.is_grad_enabled():
        return _GatherTiles.apply(x, geometry)  # type: ignore[no-any-return]
    index = remembered(_tile_index, x.shape[0], *geometry, device=x.device)  # (B·nh·nw, kh·kw)
    rows = x.contiguous().view(-1, x.shape[3] * x.shape[4])  # (B·H·W, heads·d)
    return F.embedding(index[some], rows).unflatten(2, x.shape[3:])  # type: ignore[no-any-return]


class _GatherTiles(torch.autograd.Function):
    """`_gather` with a gradient.

    A position lies in several tiles; its gradient is the sum of what they give it. `embedding` and `embedding_bag` are
    the two directions of this: every device has kernels that copy and sum whole rows, in a fixed order.
    (`index_add` and the gradient of `unfold` took 3 to 10 times as long.)
    """

    generate_vmap_rule = True  # under vmap, this is only called with maps that are not batched

    @staticmethod
    def forward(x: Tensor, geometry: tuple[int, ...]) -> Tensor:
        return _gather(x, geometry, slice(None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, tuple[int, ...]], output: Tensor) -> None:
        ctx.shape, ctx.geometry = inputs[0].shape, inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        if needs_plain_gradients(grad):
            index = remembered(_tile_index, ctx.shape[0], *ctx.geometry, device=grad.device)  # (B·nh·nw, kh·kw)
            empty = grad.new_zeros(ctx.shape).flatten(0, 2)  # (B·H·W, heads, d)
            return empty.index_add(0, index.flatten(), grad.flatten(0, 1)).view(ctx.shape), None
        order = remembered(_tile_order, ctx.shape[0], *ctx.geometry, device=grad.device)
        starts = remembered(_tile_starts, ctx.shape[0], *ctx.geometry, device=grad.device)
        rows = grad.reshape(len(order), -1)  # (B·nh·nw·kh·kw, heads·d)
        return F.embedding_bag(order, rows, starts, mode="sum").view(ctx.shape), None


def _tile_axes(
    nh: int, nw: int, th: int, tw: int, h: int, w: int, kernel: int, stride: int, dilation: int,
    *, device: torch.device,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """(nh, 1, kh, 1) and (1, nw, 1, kw): row and column of every tile's every key."""

    def axis(tiles: int, side: int, size: int) -> Tensor:  # (tiles, halo)
        length = halo(side, kernel, stride, dilation)
        key = reflected_range(-(kernel // 2 * dilation), (tiles - 1) * side * stride + length, size, device)
        return key.unfold(0, length, side * stride)

    return axis(nh, th, h)[:, None, :, None], axis(nw, tw, w)[None, :, None, :]


def _tile_index(b: int, *geometry: int, device: torch.device) -> Tensor:
    """(B·nh·nw, kh·kw): for every tile and key of its halo, the position (image·h + y)·w + x in the batch."""
    h, w = geometry[4:6]
    rows, cols = _tile_axes(*geometry, device=device)
    index = (rows * w + cols).flatten(2).flatten(0, 1)  # (nh·nw, kh·kw)
    return (torch.arange(b, device=device).view(b, 1, 1) * (h * w) + index).flatten(0, 1)


def _tile_order(*geometry: int, device: torch.device) -> Tensor:
    """(n,): the entries of `_tile_index`, sorted by the position that they name."""
    return _tile_index(*geometry, device=device).flatten().argsort(stable=True)


def _tile_starts(*geometry: int, device: torch.device) -> Tensor:
    """(B·H·W,): where each position's entries begin in `_tile_order`."""
    positions = torch.arange(geometry[0] * geometry[5] * geometry[6], device=device)
    return torch.searchsorted(_tile_index(*geometry, device=device).flatten().sort().values, positions)


def _band_mask(
    th: int, tw: int, kernel: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(th·tw, kh·kw): 0 where a tile's query sees the key, −inf elsewhere."""

    def band(n: int) -> Tensor:  # (n, halo): is the key in the query's run of `kernel` dilated positions?
        offset = torch.arange(halo(n, kernel, stride, dilation), device=device)
        offset = offset - torch.arange(n, device=device).unsqueeze(1) * stride
        return (offset >= 0) & (offset <= (kernel - 1) * dilation) & (offset % dilation == 0)

    seen = band(th)[:, None, :, None] & band(tw)[None, :, None, :]  # (th, tw, kh, kw)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))
    return mask.flatten(2).flatten(0, 1)


def _multiplicity_mask(
    ho: int, wo: int, h: int, w: int, kernel: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(Ho·Wo, H·W): log of how often the reflected window of a query shows a key; −inf where it does not."""

    def count(queries: int, size: int) -> Tensor:  # (queries, size)
        seen = window_index(queries, size, kernel, stride, dilation, device)  # (kernel, queries)
        return (seen.unsqueeze(2) == torch.arange(size, device=device)).sum(0)  # one_hot would fix size in a graph

    times = count(ho, h)[:, None, :, None] * count(wo, w)[None, :, None, :]  # (Ho, Wo, H, W)
    # float32, because MPS has no float64; products of small counts are exact in float32.
    return times.flatten(2).flatten(0, 1).to(torch.promote_types(dtype, torch.float32)).log().to(dtype)


def _dense(x: Tensor) -> Tensor:
    """x with a last stride of 1. The CPU flash kernel reads garbage, silently, from any other."""
    return x if x.stride(-1) == 1 else x.contiguous()
