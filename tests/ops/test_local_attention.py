"""Attention in a sliding window: every backend against the formula of the paper, output and all gradients."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gradients import assert_all_close, function_gradients
from torch.profiler import ProfilerActivity, profile

from acmix_zoo.ops.backends import tile_attention as tiles
from acmix_zoo.ops.backends.global_attention import global_attention
from acmix_zoo.ops.backends.offset_attention import offset_attention
from acmix_zoo.ops.local_attention import local_attention, local_attention_reference
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.sliding_window import SlidingWindow

# Maps with up to 256 positions, which use the global backend, and larger ones, which use tiles.
SIDES = st.one_of(st.integers(1, 9), st.integers(15, 19))


@settings(max_examples=40, deadline=None)
@given(
    h=SIDES, w=SIDES, batch=st.integers(1, 3), heads=st.sampled_from([1, 2, 3]), d=st.sampled_from([1, 2, 5]),
    kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), dilation=st.integers(1, 2), seed=st.integers(0, 99),
)  # fmt: skip
def test_agrees_with_the_reference_for_any_shape(
    h: int, w: int, batch: int, heads: int, d: int, kernel: int, stride: int, dilation: int, seed: int
) -> None:
    torch.manual_seed(seed)
    window = SlidingWindow(kernel, stride, dilation)
    tensors = [torch.randn(batch, h, w, heads, d, dtype=torch.float64) for _ in "qkv"]
    tensors.append(torch.randn(h, w, d, dtype=torch.float64))
    actual = function_gradients(lambda *t: local_attention(*t, window), tensors)
    assert_all_close(actual, function_gradients(lambda *t: local_attention_reference(*t, window), tensors))


BACKENDS = {
    "global": global_attention,
    "offset": offset_attention,
    "tiles 1x1": lambda *args: tiles.tile_attention(*args, (1, 1)),
    "tiles 4x8": lambda *args: tiles.tile_attention(*args, (4, 8)),
    "tiles 8x3": lambda *args: tiles.tile_attention(*args, (8, 3)),
}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize(
    ("h", "w", "window"),
    [
        (1, 1, SlidingWindow(7)),
        (2, 9, SlidingWindow(7)),
        (8, 8, SlidingWindow(3)),
        (9, 16, SlidingWindow(5, stride=2)),
        (13, 4, SlidingWindow(7, stride=3, dilation=2)),
        (16, 1, SlidingWindow(3, stride=2, dilation=3)),
        (5, 24, SlidingWindow(7, stride=2)),
        (11, 10, SlidingWindow(1, stride=3)),
    ],
    ids=str,
)
def test_every_backend_is_correct_for_any_map(
    backend: str, h: int, w: int, window: SlidingWindow, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Which backend serves a map is only a matter of speed."""
    tensors = [torch.randn(2, h, w, 2, 3, dtype=torch.float64, device=device) for _ in "qkv"]
    tensors.append(torch.randn(h, w, 3, dtype=torch.float64, device=device))

    def fast(q: torch.Tensor, *others: torch.Tensor) -> torch.Tensor:
        return BACKENDS[backend](q[:, :: window.stride, :: window.stride], *others, window)

    expected = function_gradients(lambda *t: local_attention_reference(*t, window), tensors)
    assert_all_close(function_gradients(fast, tensors), expected)
    with torch.no_grad():
        assert_all_close([fast(*tensors)], expected[:1])
        monkeypatch.setattr(tiles, "_TILE_BYTES", 1)  # one tile at a time
        assert_all_close([fast(*tensors)], expected[:1])


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize(("size", "stride", "spread"), [(13, 1, 1.0), (40, 1, 1.0), (40, 1, 8.0), (41, 2, 8.0)])
def test_half_precision_adds_little_to_the_rounding_of_inputs(
    dtype: torch.dtype, size: int, stride: int, spread: float, device: str
) -> None:
    """The floor is the error of rounding q, k, v to `dtype` with everything else in float64.

    A `spread` of the positions of 1 is more than a new layer has. At 8, the error would be 3.7 times the floor if
    positions were not relative to the centre of their tile.
    """
    q, k, v = (torch.randn(1, size, size, 2, 16, dtype=torch.float64) for _ in range(3))
    pe = position_encoding(torch.randn(16, 2, dtype=torch.float64), size, size) * spread
    window = SlidingWindow(7, stride)
    exact = local_attention_reference(q, k, v, pe, window)
    rounded = [x.to(dtype) for x in (q, k, v)]
    floor = (local_attention_reference(*(x.double() for x in rounded), pe, window).to(dtype) - exact).norm()
    inputs = (x.to(device) for x in (*rounded, pe.float()))
    error = (local_attention(*inputs, window).cpu() - exact).norm()
    assert error <= 1.5 * floor


def test_tiles_copy_the_map_once_and_not_once_per_slice() -> None:
    """A copy per slice made a map of 1024² take 2.4 times as long per pixel as one of 224²."""

    def count_copies(side: int) -> int:
        q, k, v = torch.randn(1, side, side, 8, 3 * 4).unflatten(4, (3, 4)).transpose(3, 5).unbind(4)
        with torch.no_grad(), profile(activities=[ProfilerActivity.CPU]) as profiler:
            local_attention(q, k, v, position_encoding(torch.randn(8, 2), side, side), SlidingWindow(7))
        return sum(event.count for event in profiler.key_averages() if event.key == "aten::copy_")

    count_copies(24)  # masks and indices are built in the first call
    count_copies(200)
    assert count_copies(200) == count_copies(24)
