"""Attention in a sliding window as one GPU kernel, and its gradients as two: the triton backend of `local_attention`.

Plain operators have to copy the keys around every tile of queries, and mask most of the products that they compute. The
kernels (`kernels.py`) only copy the tensors to float32, one plane for each image and head (float64 stays float64), and
then read every key in place.

Triton comes with PyTorch's builds for GPUs on Linux and compiles the kernels at their first use, for which it needs a C
compiler. Where it is missing or fails, `is_usable` returns False, and another backend is used.
"""

from __future__ import annotations

import os
import warnings
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from importlib.util import find_spec
from typing import Any

import torch
from torch import Tensor

from acmix_zoo.ops.sliding_window import SlidingWindow

# Positions (rows, columns) per program, for heads of up to so many channels. Measured on an H200 for 16 and 32 channels
# (docs/performance.md). Up to 128 channels, a program needs no more registers than for 32.
_TILES = ((16, (4, 8)), (32, (8, 8)), (64, (4, 8)), (1 << 30, (4, 4)))

torch.library.define(
    "acmix_zoo::local_attention",
    "(Tensor q, Tensor k, Tensor v, Tensor pe, int kernel, int stride, int dilation) -> (Tensor, Tensor)",
)
torch.library.define(
    "acmix_zoo::local_attention_backward",
    "(Tensor grad, Tensor out, Tensor lse, Tensor q, Tensor k, Tensor v, Tensor pe, "
    "int kernel, int stride, int dilation) -> (Tensor, Tensor, Tensor, Tensor)",
)


def triton_attention(q: Tensor, k: Tensor, v: Tensor, pe: Tensor, window: SlidingWindow) -> Tensor:
    """Return the attention of every query to its window, see `supports`.

    Args:
        q: (B, Ho, Wo, heads, d), already subsampled by the stride.
        k, v: (B, H, W, heads, d).
        pe: position encoding (H, W, d).
        window: the size of the window.

    Returns:
        (B, Ho, Wo, heads, d), in the dtype of q.
    """
    return torch.ops.acmix_zoo.local_attention(q, k, v, pe, *window)[0]  # type: ignore[no-any-return]


def supports(h: int, w: int, window: SlidingWindow) -> bool:
    """Return whether the kernels can reflect a feature map (h, w): its border must be narrower than the map."""
    return window.kernel // 2 * window.dilation < min(h, w)


@torch.compiler.assume_constant_result  # type: ignore[untyped-decorator]
def is_usable(device: str) -> bool:
    """Return whether the kernels run on a type of device. The first call compiles one of them.

    Without a GPU, tensors on "cuda" are fake, and the result says what would be used on a GPU.
    """
    return _can_run(device)  # a function of its own, because torch.compile traces through `cache`


@cache
def _can_run(device: str) -> bool:
    if device == "cuda" and not torch.cuda.is_available():
        return True
    is_interpreted = os.environ.get("TRITON_INTERPRET") == "1"  # Triton's own variable; its interpreter needs no GPU
    if (device != "cuda" and not is_interpreted) or find_spec("triton") is None:
        return False
    # A thread starts with the first GPU, which is wrong for most processes of a distributed training.
    place = torch.device(device, torch.cuda.current_device()) if device == "cuda" else torch.device(device)
    try:
        with ThreadPoolExecutor(1) as pool:  # fake tensors, FLOP counters and tracers do not see what a thread does
            pool.submit(_run_once, place).result()
    except torch.cuda.OutOfMemoryError:
        raise
    except Exception as error:  # no C compiler, an old card or driver, an incompatible version of Triton
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        warnings.warn(
            f"Triton cannot compile for this GPU, so ACmix layers use a slower backend: {reason}. Install a C compiler "
            "such as gcc, or set ACMIX_BACKEND=python to hide this warning.",
            stacklevel=2,
        )
        return False
    return True


def _run_once(device: torch.device) -> None:
    """Run the kernel for a feature map of one position."""
    with torch.no_grad():
        x = torch.zeros(1, 1, 1, 1, 1, device=device)
        triton_attention(x, x, x, x[0, :, :, 0], SlidingWindow(1))


@torch.library.impl("acmix_zoo::local_attention", "default")
def _forward(
    q: Tensor, k: Tensor, v: Tensor, pe: Tensor, kernel: int, stride: int, dilation: int
) -> tuple[Tensor, Tensor]:
    from acmix_zoo.ops.backends.triton import kernels

    b, ho, wo, heads, d = q.shape
    h, w = k.shape[1:3]
    out = q.new_empty(q.shape)
    planes = _scaled(q), _relative(k, pe), _planes(v, q.dtype)
    lse = planes[0].new_empty(b * heads, ho, wo)
    grid, sizes = _launch(lse.shape, d)
    with torch.cuda.device_of(q):
        kernels.forward[grid](*planes, out, lse, heads, h, w, ho, wo, d, kernel, stride, dilation, *sizes)
    return out, lse


@torch.library.impl("acmix_zoo::local_attention_backward", "default")
def _backward(
    grad: Tensor, out: Tensor, lse: Tensor, q: Tensor, k: Tensor, v: Tensor, pe: Tensor,
    kernel: int, stride: int, dilation: int,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:  # fmt: skip
    from acmix_zoo.ops.backends.triton import kernels

    b, ho, wo, heads, d = q.shape
    h, w = k.shape[1:3]
    border = kernel // 2 * dilation
    planes = _scaled(q), _relative(k, pe), _planes(v, q.dtype), _planes(grad, q.dtype)
    delta = (planes[3] * _planes(out, q.dtype)).sum(3)  # (B·heads, Ho, Wo)
    grad_q, grad_k = torch.empty_like(planes[0]), planes[1].new_empty(b * heads, h + 2 * border, w + 2 * border, d)
    grad_v = torch.empty_like(grad_k)
    rest = (h, w, ho, wo, d, kernel, stride, dilation)
    with torch.cuda.device_of(q):
        grid, sizes = _launch(grad_q.shape, d)
        kernels.backward_queries[grid](*planes, lse, delta, grad_q, *rest, *sizes)
        grid, sizes = _launch(grad_k.shape, d)
        kernels.backward_keys[grid](*planes, lse, delta, grad_k, grad_v, *rest, *sizes)
    grad_k, grad_v = (_fold(x, h, w, border).unflatten(0, (b, heads)) for x in (grad_k, grad_v))
    grad_pe = grad_k.sum((0, 1)).neg().to(pe.dtype)  # (H, W, d)
    grad_q = grad_q.mul_(d**-0.5).unflatten(0, (b, heads))
    grads = (_maps(x, t.dtype) for x, t in ((grad_q, q), (grad_k, k), (grad_v, v)))
    return *grads, grad_pe


def _launch(shape: tuple[int, ...], d: int) -> tuple[tuple[int], tuple[int, int, int]]:
    """Return the number of programs for planes (P, H, W, …), and the last arguments of a kernel: TH, TW and BLOCK_D."""
    planes, rows, cols = shape[:3]
    th, tw = next(tile for most, tile in _TILES if d <= most)
    return (planes * -(-rows // th) * -(-cols // tw),), (th, tw, 1 << (d - 1).bit_length())


def _planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy x (B, H, W, heads, d) into planes (B·heads, H, W, d), in float32 or float64."""
    planes = _empty_planes(x, dtype)
    return planes.copy_(x.permute(0, 3, 1, 2, 4)).flatten(0, 1)


def _maps(planes: Tensor, dtype: torch.dtype) -> Tensor:
    """Copy planes (B, heads, H, W, d) into feature maps (B, H, W, heads, d)."""
    x = planes.permute(0, 2, 3, 1, 4)
    return x.new_empty(x.shape, dtype=dtype).copy_(x)


def _scaled(q: Tensor) -> Tensor:
    """Return the planes of q / sqrt(d)."""
    planes = _empty_planes(q, q.dtype)
    factor = planes.new_full((1,), q.shape[4] ** -0.5)  # a number would let half precision round the product
    return torch.mul(q.permute(0, 3, 1, 2, 4), factor, out=planes).flatten(0, 1)


def _relative(k: Tensor, pe: Tensor) -> Tensor:
    """Return the planes of k minus its positions (H, W, d)."""
    return torch.sub(k.permute(0, 3, 1, 2, 4), pe, out=_empty_planes(k, k.dtype)).flatten(0, 1)


def _empty_planes(x: Tensor, dtype: torch.dtype) -> Tensor:
    b, h, w, heads, d = x.shape
    return x.new_empty(b, heads, h, w, d, dtype=torch.float64 if dtype == torch.float64 else torch.float32)


def _fold(grad: Tensor, h: int, w: int, border: int) -> Tensor:
    """Add the border of planes (P, H + 2·border, W + 2·border, d) to the positions that it reflects: → (P, H, W, d)."""
    for dim, size in ((1, h), (2, w)):
        before, inside, after = grad.split((border, size, border), dim)
        if border:
            inside.narrow(dim, 1, border).add_(before.flip(dim))
            inside.narrow(dim, size - 1 - border, border).add_(after.flip(dim))
        grad = inside
    return grad


@torch.library.register_fake("acmix_zoo::local_attention")
def _fake_forward(q, k, v, pe, kernel, stride, dilation):  # type: ignore[no-untyped-def]
    b, ho, wo, heads, _ = q.shape
    dtype = torch.float64 if q.dtype == torch.float64 else torch.float32
    return q.new_empty(q.shape), q.new_empty(b * heads, ho, wo, dtype=dtype)


@torch.library.register_fake("acmix_zoo::local_attention_backward")
def _fake_backward(grad, out, lse, q, k, v, pe, kernel, stride, dilation):  # type: ignore[no-untyped-def]
    return *(t.new_empty(t.shape) for t in (q, k, v)), pe.new_empty(pe.shape)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    ctx.save_for_backward(*inputs[:4], *output)
    ctx.window = inputs[4:]
    ctx.set_materialize_grads(False)


def _gradient(ctx: Any, grad: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if grad is None:
        return (None,) * 7
    q, k, v, pe, out, lse = ctx.saved_tensors
    found = torch.ops.acmix_zoo.local_attention_backward(grad, out, lse, q, k, v, pe, *ctx.window)
    return *found, None, None, None


torch.library.register_autograd("acmix_zoo::local_attention", _gradient, setup_context=_setup_context)
