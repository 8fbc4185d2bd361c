"""The operator against its readable references: float64, forward and every gradient, over random shapes."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.profiler import ProfilerActivity, profile

from acmix_zoo.ops import local_attention as la
from acmix_zoo.ops.backends import tile_attention as tiles
from acmix_zoo.ops.backends.global_attention import global_attention
from acmix_zoo.ops.backends.offset_attention import offset_attention
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.reflect import reflect_index
from acmix_zoo.ops.shift_conv import shift_conv, shift_conv_reference, shift_kernels
from acmix_zoo.ops.sliding_window import SlidingWindow
from acmix_zoo.ops.window_attention import window_attention
from acmix_zoo.ops.windows import (
    relative_position_index,
    roll,
    shifted_window_mask,
    window_partition,
    window_reverse,
)

# Sides on both sides of the limit between the global backend (256 positions) and the tiled one.
sides = st.one_of(st.integers(1, 9), st.integers(15, 23))


def close(actual: torch.Tensor, expected: torch.Tensor, tolerance: float = 1e-10) -> None:
    scale = expected.abs().max().clamp(min=1.0)
    assert actual.shape == expected.shape
    assert (actual - expected).abs().max() <= tolerance * scale


def gradients(function, tensors):  # type: ignore[no-untyped-def]
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    out = function(*leaves)
    weights = torch.linspace(-1, 1, out.numel(), dtype=out.dtype, device=out.device).reshape(out.shape).sin()
    return out.detach(), torch.autograd.grad((out * weights).sum(), leaves)


@settings(max_examples=60, deadline=None)
@given(
    h=sides, w=sides, batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 3]), d=st.sampled_from([1, 2, 5]),
    kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), dilation=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_local_attention_equals_reference(h, w, batch, heads, d, kernel, stride, dilation, seed):
    torch.manual_seed(seed)
    geometry = {"kernel": kernel, "stride": stride, "dilation": dilation}
    q, k, v = (torch.randn(batch, h, w, heads, d, dtype=torch.float64) for _ in range(3))
    pe = torch.randn(h, w, d, dtype=torch.float64)
    out, grads = gradients(lambda *x: la.local_attention(*x, **geometry), (q, k, v, pe))
    expected, expected_grads = gradients(lambda *x: la.local_attention_reference(*x, **geometry), (q, k, v, pe))
    close(out, expected)
    for grad, expected_grad in zip(grads, expected_grads, strict=True):
        close(grad, expected_grad)


BACKENDS = {
    "global": global_attention,
    "offset": offset_attention,
    **{f"tile{th}x{tw}": lambda *x, t=(th, tw): tiles.tile_attention(*x, t) for th, tw in [(1, 1), (4, 8), (8, 3)]},
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("h", "w", "kernel", "stride", "dilation"),
    [(1, 1, 7, 1, 1), (2, 9, 7, 1, 1), (8, 8, 3, 1, 1), (9, 16, 5, 2, 1), (13, 4, 7, 3, 2), (16, 1, 3, 2, 3),
     (5, 24, 7, 2, 1), (11, 10, 1, 3, 1)],
)  # fmt: skip
def test_every_backend_at_any_size(backend, h, w, kernel, stride, dilation, device, monkeypatch):
    """Which backend serves a map is a matter of speed: each of them is right for all maps."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(2, h, w, 2, 3, dtype=torch.float64, device=device) for _ in range(3))
    pe = torch.randn(h, w, 3, dtype=torch.float64, device=device)

    def fast(q, k, v, pe):  # type: ignore[no-untyped-def]
        return BACKENDS[backend](q[:, ::stride, ::stride], k, v, pe, SlidingWindow(kernel, stride, dilation))

    def reference(*x):  # type: ignore[no-untyped-def]
        return la.local_attention_reference(*x, kernel=kernel, stride=stride, dilation=dilation)

    out, grads = gradients(fast, (q, k, v, pe))
    expected, expected_grads = gradients(reference, (q, k, v, pe))
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        close(actual, wanted)
    with torch.no_grad():
        close(fast(q, k, v, pe), expected)
        monkeypatch.setattr(tiles, "_TILE_BYTES", 1)  # tile by tile
        close(fast(q, k, v, pe), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("size", "stride", "spread"), [(13, 1, 1.0), (40, 1, 1.0), (40, 1, 8.0), (41, 2, 8.0)])
def test_half_precision_adds_little_to_what_rounding_costs(dtype, size, stride, spread, device):
    """The floor is the error that rounding q, k, v to `dtype` makes, everything else in float64. A `spread` of 1 is
    already more than the layer starts with; at 8, positions not counted from the tile's middle make it 3.7 times."""
    torch.manual_seed(0)
    q, k, v = (torch.randn(1, size, size, 2, 16, dtype=torch.float64) for _ in range(3))
    pe = position_encoding(torch.randn(16, 2, dtype=torch.float64), size, size) * spread
    geometry = {"kernel": 7, "stride": stride}
    exact = la.local_attention_reference(q, k, v, pe, **geometry)
    rounded = [x.to(dtype) for x in (q, k, v)]
    floor = (la.local_attention_reference(*(x.double() for x in rounded), pe, **geometry).to(dtype) - exact).norm()
    inputs = (x.to(device) for x in (*rounded, pe.float()))
    error = (la.local_attention(*inputs, **geometry).cpu() - exact).norm()
    assert error <= 1.5 * floor


@pytest.mark.parametrize("size", [1, 2, 3, 4, 9])
def test_reflection(size):
    line = torch.arange(float(size)).view(1, 1, size)
    for reach in range(size):  # everywhere PyTorch's own reflection runs
        index = reflect_index(torch.arange(-reach, size + reach), size)
        assert torch.equal(index.float(), F.pad(line, (reach, reach), mode="reflect")[0, 0])
    # beyond it: the reflected line is continued by reflecting again
    far = reflect_index(torch.arange(-3 * size - 3, 4 * size + 3), size)
    assert far.min() == 0 and far.max() == size - 1
    assert ((far[1:] - far[:-1]).abs() == (0 if size == 1 else 1)).all()


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 9), w=st.integers(1, 9), heads=st.sampled_from([1, 2, 4, 5, 8]), d=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), dilation=st.integers(1, 2), bias=st.booleans(),
)  # fmt: skip
def test_shift_conv_equals_reference(h, w, heads, d, kernel, stride, dilation, bias):
    torch.manual_seed(h + 10 * w)
    x = torch.randn(2, h, w, d, 3 * heads, dtype=torch.float64)
    fc = torch.randn(kernel**2, 3 * heads, dtype=torch.float64)
    shift = shift_kernels(d * heads, kernel).double() + 0.1 * torch.randn(d * heads, kernel**2, kernel, kernel).double()
    tensors = (x, fc, shift, torch.randn(kernel**2, dtype=torch.float64)) if bias else (x, fc, shift)
    out, grads = gradients(lambda *t: shift_conv(*t, stride=stride, dilation=dilation), tensors)
    expected, expected_grads = gradients(lambda *t: shift_conv_reference(*t, stride=stride, dilation=dilation), tensors)
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        close(actual, wanted)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_shift_kernels_make_an_ordinary_convolution(kernel):
    """The paper's decomposition: with shifts for kernels, k² projections shifted and summed are conv2d."""
    torch.manual_seed(0)
    weight = torch.randn(1, 3, kernel, kernel, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 1, 3, dtype=torch.float64)  # one group of 3·heads = 3 maps
    fc = weight[0].flatten(1).T  # (k², 3): projection m is tap m of the convolution
    out = shift_conv(x, fc, shift_kernels(1, kernel).double())
    close(out.permute(0, 3, 1, 2), F.conv2d(x[:, :, :, 0].permute(0, 3, 1, 2), weight, padding=kernel // 2))


@pytest.mark.parametrize(("size", "window"), [((8, 8), (4, 4)), ((6, 10), (3, 5)), ((7, 7), (7, 7))])
def test_windows_come_back(size, window):
    x = torch.randn(2, *size, 3)
    windows = window_partition(x, window)
    assert windows.shape == (2 * size[0] * size[1] // (window[0] * window[1]), window[0] * window[1], 3)
    assert torch.equal(windows[0], x[0, : window[0], : window[1]].reshape(-1, 3))
    assert torch.equal(window_reverse(windows, window, (len(x), *size)), x)


@pytest.mark.parametrize("shift", [(0, 0), (2, 0), (0, -1), (-3, 2)])
def test_roll(shift):
    x = torch.randn(2, 5, 6, 3)
    assert torch.equal(roll(x, shift), x.roll(shift, (1, 2)))


@pytest.mark.parametrize(
    ("size", "window", "shift"), [((8, 8), (4, 4), (2, 2)), ((6, 9), (3, 3), (1, 1)), ((4, 8), (4, 4), (0, 2))]
)
def test_shifted_mask_separates_what_the_roll_brought_together(size, window, shift):
    rows, cols = torch.meshgrid(torch.arange(size[0]), torch.arange(size[1]), indexing="ij")
    place = torch.stack([rows, cols], -1)[None].roll((-shift[0], -shift[1]), (1, 2))
    windows = window_partition(place, window)  # (n, L, 2): where each token was before the roll
    apart = (windows.unsqueeze(1) - windows.unsqueeze(2)).abs()
    torn = (apart[..., 0] >= window[0]) | (apart[..., 1] >= window[1])
    assert torch.equal(shifted_window_mask(size, window, shift) < 0, torn)


def test_relative_position_index():
    window = (3, 4)
    index = relative_position_index(window)
    for i in range(12):
        for j in range(12):
            dy, dx = i // 4 - j // 4, i % 4 - j % 4
            assert index[i, j] == (dy + 2) * 7 + dx + 3


@pytest.mark.parametrize("windows", [1, 6])
def test_window_attention_equals_the_fused_kernel(windows):
    torch.manual_seed(0)
    tensors = [*(torch.randn(12, 2, 9, 4, dtype=torch.float64) for _ in "qkv"), torch.randn(windows, 2, 9, 9).double()]

    def fused(q, k, v, bias):  # type: ignore[no-untyped-def]
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(12 // windows, 1, 1, 1))

    out, grads = gradients(window_attention, tensors)
    expected, expected_grads = gradients(fused, tensors)
    for actual, wanted in zip((out, *grads), (expected, *expected_grads), strict=True):
        close(actual, wanted)


def test_tiles_copy_the_map_once() -> None:
    """Not once for every slice of tiles: that made a map of 1024² take 2.4 times as long a pixel as one of 224²."""

    def copies(side: int) -> int:
        q, k, v = torch.randn(1, side, side, 8, 3 * 4).unflatten(4, (3, 4)).transpose(3, 5).unbind(4)
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as seen:
            la.local_attention(q, k, v, position_encoding(torch.randn(8, 2), side, side), kernel=7)
        return sum(event.count for event in seen.key_averages() if event.key == "aten::copy_")

    copies(24)  # what is built once
    copies(200)
    assert copies(200) == copies(24)
