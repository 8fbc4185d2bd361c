"""Attention with heads padded for CUDA's fused kernels. Here the padding is forced on every device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from support.gradients import assert_all_close, function_gradients, layer_gradients
from torch.nn.attention import SDPBackend, sdpa_kernel

from acmix_zoo import ACmix2d
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends import padded_attention as module
from acmix_zoo.ops.backends.padded_attention import padded_attention, padding


def random_tensors(d: int) -> list[torch.Tensor]:
    """Return q, k, v (2, 3, 6 or 10, d) and a mask (6, 10)."""
    return [torch.randn(2, 3, n, d, dtype=torch.float64) for n in (6, 10, 10)] + [torch.randn(6, 10).double()]


@pytest.mark.parametrize(
    ("width", "itemsize", "device", "expected"),
    [
        (16, 2, "cuda", 0),
        (12, 2, "cuda", 4),
        (12, 4, "cuda", 0),
        (5, 4, "cuda", 3),
        (5, 8, "cuda", 0),
        (5, 2, "cpu", 0),
    ],
)
def test_heads_are_padded_to_rows_of_16_bytes(width: int, itemsize: int, device: str, expected: int) -> None:
    """This is only done on CUDA, and only for dtypes with a fused kernel."""
    assert padding(width, itemsize, device) == expected


@pytest.mark.parametrize("d", [1, 5, 12])
def test_padding_changes_no_result(d: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    tensors = [t.to(device) for t in random_tensors(d)]
    expected = function_gradients(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), tensors)
    monkeypatch.setattr(module, "padding", lambda *_: 3)
    assert_all_close(function_gradients(padded_attention, tensors), expected, 1e-12)


@pytest.mark.parametrize("backend", ["global", "tiles"])
def test_layer_with_padded_heads(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ACmix2d(4, 12).double().to(device)  # heads of 3 channels
    x = torch.randn(2, 4, 9, 20, dtype=torch.float64, device=device)
    with use_backend(backend):
        expected = layer_gradients(layer, x)
        monkeypatch.setattr(module, "padding", lambda width, *_: -width % 8)
        assert_all_close(layer_gradients(layer, x), expected, 1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 5, 12, 16])
def test_fused_kernel_accepts_every_head_width(d: int, dtype: torch.dtype) -> None:
    """Without padding, `sdpa_kernel` would raise an error, because no kernel is available."""
    tensors = [t.cuda() for t in random_tensors(d)]
    expected = function_gradients(padded_attention, tensors)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        actual = function_gradients(padded_attention, [t.to(dtype) for t in tensors])
    tolerance = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]  # TF32 may serve float32
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= tolerance * e.norm()
