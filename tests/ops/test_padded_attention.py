"""Attention with heads padded for CUDA's fused kernels. Here the padding is forced on every device."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch.nn.attention import SDPBackend, sdpa_kernel

from acmix_zoo import ACmix2d
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends import padded_attention as module
from acmix_zoo.ops.backends.padded_attention import padded_attention, padding
from acmix_zoo.ops.window_attention import window_attention, window_attention_fused


def with_gradients(function, tensors, dtype=None):  # type: ignore[no-untyped-def]
    leaves = [t.detach().to(dtype or t.dtype).requires_grad_() for t in tensors]
    out = function(*leaves)
    wave = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)
    return [out.detach(), *torch.autograd.grad(out, leaves, wave)]


def tensors(d: int) -> list[torch.Tensor]:
    """q, k, v (2, 3, 6, d) and a mask (6, 10)."""
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
def test_padding(width: int, itemsize: int, device: str, expected: int) -> None:
    """Heads are padded to rows of 16 bytes only on CUDA, and only for dtypes with a fused kernel."""
    assert padding(width, itemsize, device) == expected


@pytest.mark.parametrize("d", [1, 5, 12])
def test_zero_channels_change_nothing(d: int, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    inputs = [t.to(device) for t in tensors(d)]
    expected = with_gradients(lambda q, k, v, m: F.scaled_dot_product_attention(q, k, v, attn_mask=m), inputs)
    monkeypatch.setattr(module, "padding", lambda *_: 3)
    for a, e in zip(with_gradients(padded_attention, inputs), expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("backend", ["global", "tiles"])
def test_layer_with_padded_heads(backend: str, device: str, monkeypatch: pytest.MonkeyPatch) -> None:
    layer = ACmix2d(4, 12).double().to(device)  # heads of 3 channels
    x = torch.randn(2, 4, 9, 20, dtype=torch.float64, device=device)
    with use_backend(backend):
        expected = with_gradients(layer, [x])
        monkeypatch.setattr(module, "padding", lambda width, *_: -width % 8)
        found = with_gradients(layer, [x])
    for a, e in zip(found, expected, strict=True):
        torch.testing.assert_close(a, e, rtol=0, atol=1e-12)


@pytest.mark.parametrize("windows", [1, 3])
def test_windows_beside_heads(windows: int, device: str) -> None:
    """Compare the GPU implementation with the plain products that a CPU uses."""
    inputs = [torch.randn(6, 2, 9, 4, dtype=torch.float64, device=device) for _ in "qkv"]
    inputs.append(torch.randn(windows, 2, 9, 9, dtype=torch.float64, device=device))
    expected = with_gradients(window_attention, [t.cpu() for t in inputs])
    for a, e in zip(with_gradients(window_attention_fused, inputs), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=0, atol=1e-12)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("d", [1, 5, 12, 16])
def test_a_fused_kernel_takes_every_head_width(d: int, dtype: torch.dtype) -> None:
    """Without padding, `sdpa_kernel` would raise an error, because no kernel is available."""
    inputs = [t.cuda() for t in tensors(d)]
    expected = with_gradients(padded_attention, inputs)
    with sdpa_kernel(SDPBackend.EFFICIENT_ATTENTION):
        found = with_gradients(padded_attention, inputs, dtype)
    tolerance = {torch.float32: 1e-2, torch.float16: 1e-2, torch.bfloat16: 5e-2}[dtype]  # TF32 may serve float32
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() <= tolerance * e.norm()
