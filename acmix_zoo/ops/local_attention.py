"""k×k attention over a reflected border: the attention path of the ResNet-form ACmix.

Every query attends to the `kernel × kernel` positions around it, taken from the map continued by reflection, with the
logits of the paper (stage II, "attention-weighted sum"):

    logit(i, j) = q_i · (k_j + pe_i − pe_j) / sqrt(d)

Four forms of one function, interchangeable and tested against each other:

* `local_attention_reference` is the formula as printed: it unfolds k, v and the positions into `kernel²` copies.
* `_tile_attention` cuts the map into tiles of queries; a tile and its halo of keys go through
  `scaled_dot_product_attention` under one band mask, which is the same for every tile.
* `_global_attention` serves small maps: every query sees the whole map, and a key that reflection shows m times gets
  log m added to its logit. Nothing is padded, nothing gathered.
* `_offset_attention` walks over the window's columns with gathers alone. It is slower, but no size in it is rounded to
  a tile, so `torch.export` and ONNX can leave batch, height and width open.

The fast forms use one exact identity: `q_i · pe_i` is the same for all j, and softmax drops it, so the keys become
`k − pe` and no position is ever unfolded.

All maps are laid out (B, H, W, heads, d): a position's heads and channels lie together.
"""

from __future__ import annotations

from functools import lru_cache

import torch
import torch.nn.functional as F
from torch import Tensor

# Gathered keys and values per chunk of the batch. Larger chunks lose to page faults, smaller ones to call overhead.
_CHUNK_BYTES = 4 << 20
# Positions of a map up to which each query may as well see all of them: at 16², tiles would see 196 keys of the 256,
# and pay for gathering them.
_GLOBAL_UP_TO = 256
# When sizes are symbols (compile) the tile cannot depend on them.
_SYMBOLIC_TILE = (4, 8)


def reflect_index(positions: Tensor, size: int) -> Tensor:
    """Positions (int64, any shape) folded into `0 … size − 1` by reflection that does not repeat the edge.

    Reflection is periodic, so any overhang is defined: a map of 3 continues as 0 1 2 1 0 1 2 …, a map of 1 as 0 0 0 ….
    Where `torch.nn.functional.pad(mode="reflect")` runs, this is the same.
    """
    period = torch.full_like(positions, torch.sym_max(2 * size - 2, 1))  # a tensor: ONNX takes no symbol as a modulus
    return (size - 1) - (positions.remainder(period) - (size - 1)).abs()


def _reflected_range(start: int, length: int, size: int, device: torch.device) -> Tensor:
    """(length,): positions start, start + 1, … of a map of `size`, reflected."""
    return reflect_index(torch.arange(length, device=device) + start, size)


def _window_index(queries: int, size: int, kernel: int, stride: int, dilation: int, device: torch.device) -> Tensor:
    """(kernel, queries): along one axis, the reflected position of every key of every query's window."""
    key = (torch.arange(kernel, device=device) - kernel // 2) * dilation
    return reflect_index(torch.arange(queries, device=device) * stride + key.unsqueeze(1), size)


def local_attention_reference(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *, kernel: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """The formula as printed in the paper, with `kernel²` copies of k, v and pe. Readable, slow, large.

    Shapes, arguments and result as `local_attention`.
    """
    h, w, heads, d = q.shape[1:]
    reach = kernel // 2 * dilation
    rows = _reflected_range(-reach, h + 2 * reach, h, q.device)
    cols = _reflected_range(-reach, w + 2 * reach, w, q.device)

    def windows(x: Tensor) -> Tensor:  # (n, H, W, c) → (n, c, k², Ho·Wo)
        padded = x[:, rows][:, :, cols].permute(0, 3, 1, 2)  # (n, c, H+2r, W+2r)
        unfolded: Tensor = F.unfold(padded, kernel, dilation, stride=stride)
        return unfolded.unflatten(1, (x.shape[3], kernel**2))  # type: ignore[no-any-return]

    def split(x: Tensor) -> Tensor:  # (B, H, W, heads, d) → (B, heads, d, k², Ho·Wo)
        return windows(x.flatten(3)).unflatten(1, (heads, d))  # type: ignore[no-any-return]

    q_i = q[:, ::stride, ::stride]  # (B, Ho, Wo, heads, d)
    ho, wo = q_i.shape[1:3]
    q_i = q_i.flatten(1, 2).permute(0, 2, 3, 1).unsqueeze(3)  # (B, heads, d, 1, Ho·Wo)
    pe_i = pe[::stride, ::stride].flatten(0, 1).T.unsqueeze(1)  # (d, 1, Ho·Wo)
    pe_j = windows(pe.unsqueeze(0))[0]  # (d, k², Ho·Wo)
    logits = (q_i * d**-0.5 * (split(k) + pe_i - pe_j)).sum(2)  # (B, heads, k², Ho·Wo)
    out = (logits.softmax(2).unsqueeze(2) * split(v)).sum(3)  # (B, heads, d, Ho·Wo)
    result: Tensor = out.permute(0, 3, 1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result


def local_attention(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, *, kernel: int, stride: int = 1, dilation: int = 1
) -> Tensor:
    """Attention of every `stride`-th query to its `kernel × kernel` neighbourhood in the reflected map.

    Args:
        q, k, v: (B, H, W, heads, d), any strides.
        pe: position encoding (H, W, d), shared by the heads.
        kernel: odd side of the window, in steps of `dilation`.
        stride: queries are taken at rows and columns 0, stride, 2·stride, …; keys are not subsampled.
        dilation: distance of neighbouring keys in the window.

    Returns:
        (B, ceil(H/stride), ceil(W/stride), heads, d), in the dtype of q.

    Source: ACmix, CVPR 2022, eq. 8–10; the logits' position term as in the authors' code.
    """
    h, w = q.shape[1:3]
    if torch.compiler.is_exporting():
        # Gathered, not sliced: the number of queries then has the form that a strided convolution gives its outputs.
        rows, cols = (torch.arange((n - 1) // stride + 1, device=q.device) * stride for n in (h, w))
        return _offset_attention(q[:, rows][:, :, cols], _keys_values(q, k, v, pe), kernel, stride, dilation)
    if q.numel() == 0:  # no kernel takes an empty batch; the sum keeps every input in the graph
        return q[:, ::stride, ::stride] + 0 * (k.sum() + v.sum() + pe.sum()).to(q.dtype)
    q, kv = q[:, ::stride, ::stride], _keys_values(q, k, v, pe)
    if h * w <= _GLOBAL_UP_TO:
        return _global_attention(q, kv, kernel, stride, dilation)
    if torch.compiler.is_compiling():
        return _tile_attention(q, kv, kernel, stride, dilation, _SYMBOLIC_TILE)
    tile = _choose_tile(*q.shape[1:3], kernel, stride, dilation)
    return _ChunkedTiles.apply(q, kv, kernel, stride, dilation, tile)  # type: ignore[no-any-return]


def _keys_values(q: Tensor, k: Tensor, v: Tensor, pe: Tensor) -> Tensor:
    """(B, H, W, 2, heads, d), contiguous: the keys minus their position, and the values."""
    # The difference is taken in pe's precision (float32 at least) and rounded once.
    return torch.stack(((k - pe.unsqueeze(2)).to(q.dtype), v), dim=3)


def _global_attention(q: Tensor, kv: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """q (B, Ho, Wo, heads, d), kv (B, H, W, 2, heads, d) → (B, Ho, Wo, heads, d): one attention over the whole map."""
    b, ho, wo, heads, d = q.shape
    h, w = kv.shape[1:3]
    mask = _cached(_multiplicity_mask, ho, wo, h, w, kernel, stride, dilation, dtype=q.dtype, device=q.device)
    queries = q.reshape(b, ho * wo, heads, d).transpose(1, 2)  # (B, heads, Ho·Wo, d)
    keys, values = kv.flatten(1, 2).permute(2, 0, 3, 1, 4).unbind(0)  # 2 × (B, heads, H·W, d)
    out = F.scaled_dot_product_attention(_dense(queries), keys, values, attn_mask=mask)  # (B, heads, Ho·Wo, d)
    result: Tensor = out.transpose(1, 2).unflatten(1, (ho, wo))  # (B, Ho, Wo, heads, d)
    return result


def _tile_attention(q: Tensor, kv: Tensor, kernel: int, stride: int, dilation: int, tile: tuple[int, int]) -> Tensor:
    """q (B, Ho, Wo, heads, d), kv (B, H, W, 2, heads, d) → (B, Ho, Wo, heads, d), by tiles of th×tw queries."""
    b, ho, wo, heads, d = q.shape
    th, tw = tile
    nh, nw = (ho + th - 1) // th, (wo + tw - 1) // tw
    kh, kw = _halo(th, kernel, stride, dilation), _halo(tw, kernel, stride, dilation)
    reach = kernel // 2 * dilation

    # The last tiles may overhang: their keys are reflected like any other, their queries cropped away at the end.
    rows = _reflected_range(-reach, (nh - 1) * th * stride + kh, kv.shape[1], q.device)
    cols = _reflected_range(-reach, (nw - 1) * tw * stride + kw, kv.shape[2], q.device)
    padded = kv.flatten(3).index_select(1, rows).index_select(2, cols)  # (B, Hp, Wp, 2·heads·d)
    tiles = padded.unfold(1, kh, th * stride).unfold(2, kw, tw * stride)  # (B, nh, nw, 2·heads·d, kh, kw)
    tiles = tiles.permute(0, 1, 2, 4, 5, 3).reshape(b * nh * nw, kh * kw, 2, heads, d)
    keys, values = tiles.permute(2, 0, 3, 1, 4).unbind(0)  # 2 × (B·nh·nw, heads, kh·kw, d)

    queries = F.pad(q, (0, 0, 0, 0, 0, nw * tw - wo, 0, nh * th - ho))  # (B, nh·th, nw·tw, heads, d)
    queries = queries.reshape(b, nh, th, nw, tw, heads, d).permute(0, 1, 3, 5, 2, 4, 6)
    queries = queries.reshape(b * nh * nw, heads, th * tw, d)
    mask = _cached(_band_mask, th, tw, kernel, stride, dilation, dtype=q.dtype, device=q.device)

    out = F.scaled_dot_product_attention(_dense(queries), _dense(keys), _dense(values), attn_mask=mask)
    out = out.reshape(b, nh, nw, heads, th, tw, d).permute(0, 1, 4, 2, 5, 3, 6)  # (B, nh, th, nw, tw, heads, d)
    return out.reshape(b, nh * th, nw * tw, heads, d)[:, :ho, :wo]


def _offset_attention(q: Tensor, kv: Tensor, kernel: int, stride: int, dilation: int) -> Tensor:
    """q (B, Ho, Wo, heads, d), kv (B, H, W, 2, heads, d) → (B, Ho, Wo, heads, d), by columns of the window."""
    rows = _window_index(q.shape[1], kv.shape[1], kernel, stride, dilation, q.device)  # (k, Ho)
    cols = _window_index(q.shape[2], kv.shape[2], kernel, stride, dilation, q.device)  # (k, Wo)
    keys, values = kv[:, rows].unbind(4)  # 2 × (B, k, Ho, W, heads, d)
    q = (q * q.shape[-1] ** -0.5).unsqueeze(1)  # (B, 1, Ho, Wo, heads, d)
    logits = torch.stack([(q * keys[:, :, :, col]).sum(-1) for col in cols], 2)  # (B, k, k, Ho, Wo, heads)
    weights = logits.flatten(1, 2).softmax(1).unflatten(1, (kernel, kernel)).unsqueeze(-1)
    columns = [(weights[:, :, x] * values[:, :, :, col]).sum(1) for x, col in enumerate(cols)]
    return torch.stack(columns).sum(0)  # of k × (B, Ho, Wo, heads, d)


class _ChunkedTiles(torch.autograd.Function):
    """`_tile_attention` over chunks of the batch. For the gradient it keeps q and kv, not their gathered tiles
    (4 to 9 times as large): backward gathers them again."""

    @staticmethod
    def forward(  # type: ignore[no-untyped-def]
        ctx, q: Tensor, kv: Tensor, kernel: int, stride: int, dilation: int, tile: tuple[int, int]
    ) -> Tensor:
        ctx.save_for_backward(q, kv)
        ctx.geometry = (kernel, stride, dilation, tile)
        out = q.new_empty(q.shape)
        for part in _chunks(q, kernel, stride, dilation, tile):
            out[part] = _tile_attention(q[part], kv[part], kernel, stride, dilation, tile)
        return out

    @staticmethod
    def backward(ctx, grad: Tensor):  # type: ignore[no-untyped-def]
        q, kv = ctx.saved_tensors
        grad_q, grad_kv = torch.empty_like(q, memory_format=torch.contiguous_format), torch.empty_like(kv)
        for part in _chunks(q, *ctx.geometry):
            with torch.enable_grad():
                leaves = q[part].detach().requires_grad_(), kv[part].detach().requires_grad_()
                out = _tile_attention(*leaves, *ctx.geometry)
            grad_q[part], grad_kv[part] = torch.autograd.grad(out, leaves, grad[part])
        return grad_q, grad_kv, None, None, None, None


def _chunks(q: Tensor, kernel: int, stride: int, dilation: int, tile: tuple[int, int]) -> list[slice]:
    """Slices of the batch whose gathered keys and values fill about `_CHUNK_BYTES`."""
    b, ho, wo, heads, d = q.shape
    keys = _halo(tile[0], kernel, stride, dilation) * _halo(tile[1], kernel, stride, dilation)
    image = -(-ho // tile[0]) * -(-wo // tile[1]) * keys * 2 * heads * d * q.element_size()
    step = max(1, _CHUNK_BYTES // image)
    return [slice(start, start + step) for start in range(0, b, step)]


def _halo(queries: int, kernel: int, stride: int, dilation: int) -> int:
    """Keys along one axis that a run of `queries` queries sees."""
    return (queries - 1) * stride + (kernel - 1) * dilation + 1


@lru_cache(maxsize=1024)
def _choose_tile(ho: int, wo: int, kernel: int, stride: int, dilation: int) -> tuple[int, int]:
    """The tile with the least work: products of queries and keys, and the gathering of the keys."""

    def work(tile: tuple[int, int]) -> int:
        keys = _halo(tile[0], kernel, stride, dilation) * _halo(tile[1], kernel, stride, dilation)
        return -(-ho // tile[0]) * -(-wo // tile[1]) * keys * (tile[0] * tile[1] + 16)

    return min(((th, tw) for th in range(3, 9) for tw in range(3, 9)), key=work)


def _band_mask(
    th: int, tw: int, kernel: int, stride: int, dilation: int, dtype: torch.dtype, device: torch.device
) -> Tensor:
    """(th·tw, kh·kw): 0 where a tile's query sees the key, −inf elsewhere."""

    def band(n: int) -> Tensor:  # (n, halo): is the key in the query's run of `kernel` dilated positions?
        offset = torch.arange(_halo(n, kernel, stride, dilation), device=device)
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
        seen = _window_index(queries, size, kernel, stride, dilation, device)  # (kernel, queries)
        return F.one_hot(seen, size).sum(0)

    times = count(ho, h)[:, None, :, None] * count(wo, w)[None, :, None, :]  # (Ho, Wo, H, W)
    return times.flatten(2).flatten(0, 1).to(torch.float64).log().to(dtype)


_masks: dict[object, Tensor] = {}


def _cached(build, *geometry: int, dtype: torch.dtype, device: torch.device) -> Tensor:  # type: ignore[no-untyped-def]
    """`build(*geometry, dtype, device)`, remembered: a mask depends on the geometry alone and costs a dozen calls.
    While a graph is being traced nothing is remembered, since tensors of a trace must not outlive it."""
    if torch.compiler.is_compiling() or device.type == "meta":
        return build(*geometry, dtype=dtype, device=device)  # type: ignore[no-any-return]
    key = (build, geometry, dtype, device)
    if key not in _masks:
        if len(_masks) >= 256:
            _masks.clear()
        with torch.inference_mode(False):  # an inference tensor could not serve a later training step
            _masks[key] = build(*geometry, dtype=dtype, device=device)
    return _masks[key]


def _dense(x: Tensor) -> Tensor:
    """x with a last stride of 1. The CPU flash kernel reads garbage, silently, from any other."""
    return x if x.stride(-1) == 1 else x.contiguous()
