"""Attention within Swin's windows: the plain and the fused implementation, and PyTorch's own."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.gradients import assert_all_close, function_gradients

from acmix_zoo.ops.window_attention import window_attention, window_attention_fused


@pytest.mark.parametrize("windows", [1, 6])
def test_agrees_with_pytorch(windows: int) -> None:
    tensors = [*(torch.randn(12, 2, 9, 4, dtype=torch.float64) for _ in "qkv"), torch.randn(windows, 2, 9, 9).double()]

    def expected(q: torch.Tensor, k: torch.Tensor, v: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=bias.repeat(12 // windows, 1, 1, 1))

    assert_all_close(function_gradients(window_attention, tensors), function_gradients(expected, tensors))


@pytest.mark.parametrize("windows", [1, 3])
def test_fused_attention_agrees_with_the_plain_products_of_a_cpu(windows: int, device: str) -> None:
    tensors = [torch.randn(6, 2, 9, 4, dtype=torch.float64) for _ in "qkv"]
    tensors.append(torch.randn(windows, 2, 9, 9, dtype=torch.float64))
    actual = function_gradients(window_attention_fused, [t.to(device) for t in tensors])
    assert_all_close(actual, function_gradients(window_attention, tensors), 1e-12)
