"""The tiles backend of `local_attention`, for large feature maps: each tile of queries attends to the keys around it.

The windows of neighbouring queries overlap. A tile of th×tw queries therefore gathers the kh×kw keys that its windows
cover together, and goes through `scaled_dot_product_attention` with a band mask, which selects the keys of each query
and is the same for every tile. The keys of different tiles overlap too, so a gather copies them.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from acmix_zoo.ops.backends.padded_attention import padded_attention
from acmix_zoo.ops.derivatives import needs_plain_gradients
from acmix_zoo.ops.geometry_cache import cached
from acmix_zoo.ops.position_encoding import subtract_positions
from acmix_zoo.ops.reflect import reflected_range
from acmix_zoo.ops.sliding_window import SlidingWindow, key_extent

# Size of the keys and values that a CPU gathers at a time if no gradient is needed, so that they stay in a cache.
_TILE_BYTES = 2 << 20


class TileGrid(NamedTuple):
    """A feature map whose queries are cut into tiles. The last tiles may extend beyond it.

    Attributes:
        rows, cols: number of tiles along each axis.
        tile_rows, tile_cols: number of queries in a tile along each axis, th and tw.
        height, width: size of the feature map that the keys come from.
        window: the size of each query's window.
    """

    rows: int
    cols: int
    tile_rows: int
    tile_cols: int
    height: int
    width: int
    window: SlidingWindow


def tile_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow, tile: tuple[int, int]) -> Tensor:
    """Return the attention of every query to its window.

    Args:
        q: (B, Ho, Wo, heads, d), already subsampled by the stride.
        k, v: (B, H, W, heads, d).
        pe: position encoding (H, W, d).
        window: the size of the window.
        tile: rows and columns of queries in a tile, (th, tw).

    Returns:
        (B, Ho, Wo, heads, d).
    """
    th, tw = tile
    nh, nw = (q.shape[1] + th - 1) // th, (q.shape[2] + tw - 1) // tw
    grid = TileGrid(nh, nw, th, tw, k.shape[1], k.shape[2], window)
    queries = _split_queries(q, grid)  # (B·nh·nw, heads, th·tw, d)
    mask = cached(band_mask, th, tw, window, dtype=q.dtype, device=q.device)  # (th·tw, kh·kw)
    is_half = q.element_size() < pe.element_size()
    if not is_half:
        k = subtract_positions(k, pe, q.dtype)

    def attend(tiles: slice) -> Tensor:  # (tiles, heads, th·tw, d), for some of the B·nh·nw tiles
        keys, values = (_gather(x, grid, tiles) for x in (k, v))  # 2 × (tiles, kh·kw, heads, d)
        if is_half:
            keys = _subtract_tile_positions(keys, pe, grid)
        return padded_attention(queries[tiles], keys.transpose(1, 2), values.transpose(1, 2), mask)

    if is_half or torch.is_grad_enabled() or torch.compiler.is_compiling() or q.device.type != "cpu":
        out = attend(slice(None))
    else:
        k, v = k.contiguous(), v.contiguous()  # once, instead of once for every slice of tiles
        step = max(1, _TILE_BYTES // (mask.shape[1] * 2 * q.shape[3] * q.shape[4] * q.element_size()))
        outs = [attend(slice(i, i + step)) for i in range(0, len(queries), step)]
        out = outs[0] if len(outs) == 1 else torch.cat(outs)
    return _join_queries(out, grid, q)


def _split_queries(q: Tensor, grid: TileGrid) -> Tensor:
    """Return the queries tile by tile: (B, Ho, Wo, heads, d) → (B·nh·nw, heads, th·tw, d)."""
    b, ho, wo, heads, d = q.shape
    nh, nw, th, tw = grid[:4]
    if torch.compiler.is_compiling() or (nh * th, nw * tw) != (ho, wo):  # when compiling, one graph for both cases
        q = F.pad(q, (0, 0, 0, 0, 0, nw * tw - wo, 0, nh * th - ho))  # (B, nh·th, nw·tw, heads, d)
    tiles = q.reshape(b, nh, th, nw, tw, heads, d).permute(0, 1, 3, 5, 2, 4, 6)  # (B, nh, nw, heads, th, tw, d)
    # Always copy. With `reshape`, a compiler would create one graph for inputs that allow a view, and one for others.
    return tiles.clone(memory_format=torch.contiguous_format).view(b * nh * nw, heads, th * tw, d)


def _join_queries(out: Tensor, grid: TileGrid, q: Tensor) -> Tensor:
    """Join the results of all tiles into the shape of q, the inverse of `_split_queries`."""
    b, ho, wo, heads, d = q.shape
    nh, nw, th, tw = grid[:4]
    out = out.reshape(b, nh, nw, heads, th, tw, d).permute(0, 1, 4, 2, 5, 3, 6)  # (B, nh, th, nw, tw, heads, d)
    # Copies, for the same reason as in `_split_queries`.
    out = out.clone(memory_format=torch.contiguous_format).view(b, nh * th, nw * tw, heads, d)[:, :ho, :wo]
    return out.clone(memory_format=torch.contiguous_format) if torch.compiler.is_compiling() else out


def _subtract_tile_positions(keys: Tensor, pe: Tensor, grid: TileGrid) -> Tensor:
    """Return the keys of all tiles (B·nh·nw, kh·kw, heads, d) minus their positions, for half precision.

    Far from the centre of the feature map, k − pe would be too coarse in half precision. Softmax cancels anything that
    all keys of a tile have in common. Positions are therefore relative to the centre of their tile, and the difference
    is rounded once.
    """
    tiles = grid.rows * grid.cols
    positions = _gather(pe[None, :, :, None], grid, slice(tiles))  # (nh·nw, kh·kw, 1, d)
    positions = positions - positions[:, positions.shape[1] // 2].unsqueeze(1)
    return (keys.unflatten(0, (-1, tiles)) - positions).flatten(0, 1).to(keys.dtype)  # type: ignore[no-any-return]


def _gather(x: Tensor, grid: TileGrid, tiles: slice) -> Tensor:
    """Gather the positions that some of the B·nh·nw tiles see: x (B, H, W, heads, d) → (tiles, kh·kw, heads, d)."""
    if torch.compiler.is_compiling():
        # Index by row and column. With dynamic sizes, inductor takes ten times as long for one index into H·W.
        rows, cols = _tile_axes(grid, device=x.device)  # (nh, 1, kh, 1), (1, nw, 1, kw)
        return x[:, rows, cols].flatten(3, 4).flatten(0, 2)
    if torch.is_grad_enabled():
        return _GatherTiles.apply(x, grid)  # type: ignore[no-any-return]
    index = cached(_tile_index, x.shape[0], grid, device=x.device)  # (B·nh·nw, kh·kw)
    rows = x.contiguous().view(-1, x.shape[3] * x.shape[4])  # (B·H·W, heads·d)
    return F.embedding(index[tiles], rows).unflatten(2, x.shape[3:])  # type: ignore[no-any-return]


class _GatherTiles(torch.autograd.Function):
    """`_gather` for all tiles, with a gradient.

    A position is part of several tiles, so its gradient is the sum of theirs. `embedding` and `embedding_bag` are used
    for the two directions, because every device has kernels for them that copy and sum complete rows in a fixed order.
    (`index_add` and the gradient of `unfold` took 3 to 10 times as long.)
    """

    generate_vmap_rule = True  # under vmap, this is only called with inputs that are not batched

    @staticmethod
    def forward(x: Tensor, grid: TileGrid) -> Tensor:
        return _gather(x, grid, slice(None))

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, TileGrid], output: Tensor) -> None:
        ctx.shape, ctx.grid = inputs[0].shape, inputs[1]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, grad: Tensor | None) -> tuple[Tensor | None, None]:
        if grad is None:
            return None, None
        if needs_plain_gradients(grad):
            index = cached(_tile_index, ctx.shape[0], ctx.grid, device=grad.device)  # (B·nh·nw, kh·kw)
            empty = grad.new_zeros(ctx.shape).flatten(0, 2)  # (B·H·W, heads, d)
            return empty.index_add(0, index.flatten(), grad.flatten(0, 1)).view(ctx.shape), None
        order = cached(_tile_order, ctx.shape[0], ctx.grid, device=grad.device)
        starts = cached(_tile_starts, ctx.shape[0], ctx.grid, device=grad.device)
        rows = grad.reshape(len(order), -1)  # (B·nh·nw·kh·kw, heads·d)
        return F.embedding_bag(order, rows, starts, mode="sum").view(ctx.shape), None


def _tile_axes(grid: TileGrid, *, device: torch.device) -> tuple[Tensor, Tensor]:
    """Return the row and the column of every key of every tile: (nh, 1, kh, 1) and (1, nw, 1, kw)."""
    window = grid.window

    def axis(tiles: int, queries: int, size: int) -> Tensor:  # (tiles, keys)
        keys = key_extent(queries, window)
        start, step = -(window.kernel // 2 * window.dilation), queries * window.stride
        return reflected_range(start, (tiles - 1) * step + keys, size, device).unfold(0, keys, step)

    rows = axis(grid.rows, grid.tile_rows, grid.height)[:, None, :, None]
    return rows, axis(grid.cols, grid.tile_cols, grid.width)[None, :, None, :]


def _tile_index(batch: int, grid: TileGrid, *, device: torch.device) -> Tensor:
    """Return the index (B·nh·nw, kh·kw) of every key of every tile: its position (image·H + y)·W + x in the batch."""
    rows, cols = _tile_axes(grid, device=device)
    index = (rows * grid.width + cols).flatten(2).flatten(0, 1)  # (nh·nw, kh·kw)
    first = torch.arange(batch, device=device).view(batch, 1, 1) * (grid.height * grid.width)
    return (first + index).flatten(0, 1)


def _tile_order(batch: int, grid: TileGrid, *, device: torch.device) -> Tensor:
    """Return the permutation (B·nh·nw·kh·kw,) that sorts the entries of `_tile_index` by the position they refer to."""
    return _tile_index(batch, grid, device=device).flatten().argsort(stable=True)


def _tile_starts(batch: int, grid: TileGrid, *, device: torch.device) -> Tensor:
    """Return where the entries of each position begin in `_tile_order`, (B·H·W,)."""
    positions = torch.arange(batch * grid.height * grid.width, device=device)
    return torch.searchsorted(_tile_index(batch, grid, device=device).flatten().sort().values, positions)


def band_mask(th: int, tw: int, window: SlidingWindow, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Return the mask (th·tw, kh·kw) of a tile: 0 for the keys in a query's window, −inf elsewhere."""
    kernel, stride, dilation = window

    def band(queries: int) -> Tensor:  # (queries, keys): whether the key is in the query's window
        offset = torch.arange(key_extent(queries, window), device=device)
        offset = offset - torch.arange(queries, device=device).unsqueeze(1) * stride
        return (offset >= 0) & (offset <= (kernel - 1) * dilation) & (offset % dilation == 0)

    seen = band(th)[:, None, :, None] & band(tw)[None, :, None, :]  # (th, tw, kh, kw)
    mask = torch.zeros(seen.shape, dtype=dtype, device=device).masked_fill(~seen, float("-inf"))
    return mask.flatten(2).flatten(0, 1)
