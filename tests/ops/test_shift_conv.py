"""The convolution path: against shifts and sums as printed in the paper, and against an ordinary convolution."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from support.gradients import assert_all_close, fill_freed_memory_with_nan, function_gradients

from acmix_zoo.ops.shift_conv import grouped_conv, shift_conv, shift_conv_reference, shift_kernels


@settings(max_examples=40, deadline=None)
@given(
    h=st.integers(1, 9), w=st.integers(1, 9), heads=st.sampled_from([1, 2, 4, 5, 8]), d=st.integers(1, 3),
    kernel=st.sampled_from([1, 3, 5, 7]), stride=st.integers(1, 3), dilation=st.integers(1, 2), bias=st.booleans(),
)  # fmt: skip
def test_agrees_with_the_reference_for_any_shape(
    h: int, w: int, heads: int, d: int, kernel: int, stride: int, dilation: int, bias: bool
) -> None:
    torch.manual_seed(h + 10 * w)
    shift = shift_kernels(d * heads, kernel).double()
    tensors = [
        torch.randn(2, h, w, d, 3 * heads, dtype=torch.float64),
        torch.randn(kernel**2, 3 * heads, dtype=torch.float64),
        shift + 0.1 * torch.randn_like(shift),
    ]
    if bias:
        tensors.append(torch.randn(kernel**2, dtype=torch.float64))
    actual = function_gradients(lambda *t: shift_conv(*t, stride=stride, dilation=dilation), tensors)
    expected = function_gradients(lambda *t: shift_conv_reference(*t, stride=stride, dilation=dilation), tensors)
    assert_all_close(actual, expected)


@pytest.mark.parametrize("kernel", [1, 3, 5])
def test_shift_kernels_give_an_ordinary_convolution(kernel: int) -> None:
    """This is the paper's decomposition: shifting and summing k² projections is a convolution."""
    weight = torch.randn(1, 3, kernel, kernel, dtype=torch.float64)
    x = torch.randn(2, 6, 5, 1, 3, dtype=torch.float64)  # one group of 3·heads = 3 maps
    fc = weight[0].flatten(1).T  # (k², 3): projection m is tap m of the convolution
    out = shift_conv(x, fc, shift_kernels(1, kernel).double())
    expected = F.conv2d(x[:, :, :, 0].permute(0, 3, 1, 2), weight, padding=kernel // 2)
    assert_all_close([out.permute(0, 3, 1, 2)], [expected])


@pytest.mark.parametrize("is_autocast", [False, True])
@pytest.mark.parametrize(
    ("size", "options"),
    [
        ((40, 40), {"dilation": 2}),
        ((16, 33), {"dilation": 3}),
        ((16, 1), {"stride": 2}),
        ((16, 2), {"stride": 3}),
        ((40, 40), {}),
    ],
)
def test_bfloat16_gradients_of_kernels_are_right(
    size: tuple[int, int], options: dict[str, int], is_autocast: bool
) -> None:
    """PyTorch's own are made of uninitialised memory in all cases but the last."""
    torch.manual_seed(0)
    x, kernels = torch.randn(2, *size, 16, 3).bfloat16(), torch.randn(16, 3, 3, 3).bfloat16()

    def gradient(dtype: torch.dtype, *, autocast: bool = False) -> torch.Tensor:
        leaf = kernels.to(dtype).requires_grad_()
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            out = grouped_conv(x.to(dtype), leaf, **options)
        assert out.dtype == (torch.bfloat16 if autocast else dtype)
        (found,) = torch.autograd.grad(out.double().square().mean(), leaf)
        return found.double()

    expected = gradient(torch.float64)
    for _ in range(5):
        fill_freed_memory_with_nan()
        found = gradient(torch.float32 if is_autocast else torch.bfloat16, autocast=is_autocast)
        torch.testing.assert_close(found, expected, rtol=0, atol=0.03 * expected.abs().max().item())
