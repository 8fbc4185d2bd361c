"""The ACmix operator: all ways to compute it agree with its reference, in every dtype and memory format."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from support.gradients import assert_all_close, layer_gradients, randomize
from torch import nn

from acmix_zoo import ACmix2d
from acmix_zoo.ops import BACKENDS, dispatch, use_backend

OPTIONS: list[dict[str, Any]] = [
    {},
    {"stride": 2},
    {"heads": 8},
    {"paths": "attention"},
    {"paths": "convolution"},
    {"dilation": 2},
]
FORMATS = [torch.contiguous_format, torch.channels_last]


class TestAgreesWithTheReference:
    @pytest.mark.parametrize("memory_format", FORMATS)
    @pytest.mark.parametrize("size", [(17, 16), (9, 5), (1, 1)])
    @pytest.mark.parametrize("options", OPTIONS, ids=str)
    def test_at_once_and_in_chunks(
        self,
        options: dict[str, Any],
        size: tuple[int, int],
        memory_format: torch.memory_format,
        device: str,
        monkeypatch: pytest.MonkeyPatch,
    ) -> None:
        layer = randomize(ACmix2d(6, 16, **options).double().to(device))
        x = torch.randn(3, 6, *size, dtype=torch.float64, device=device).contiguous(memory_format=memory_format)
        with use_backend("reference"):
            expected = layer_gradients(layer, x)
        assert_all_close(layer_gradients(layer, x), expected)
        monkeypatch.setattr(dispatch, "_CHUNK_BYTES", 1)  # one image at a time, with recomputed projections
        assert_all_close(layer_gradients(layer, x), expected)
        monkeypatch.setattr(dispatch, "_KEEP_PROJECTIONS_FROM", 1)
        assert_all_close(layer_gradients(layer, x), expected)
        with torch.no_grad():
            out = layer(x)
        assert_all_close([out], expected[:1])
        assert out.is_contiguous(memory_format=memory_format)

    @pytest.mark.parametrize("backend", BACKENDS)
    @pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
    def test_every_backend_in_every_dtype(self, backend: str, dtype: torch.dtype, device: str) -> None:
        if (backend, device) == ("triton", "cpu"):
            pytest.skip("Triton's interpreter would take minutes; test_triton.py has smaller feature maps")
        layer = randomize(ACmix2d(4, 8).to(device, dtype))
        x = torch.randn(2, 4, 18, 21, dtype=dtype, device=device)
        exact = layer.double()
        with use_backend("reference"):
            expected = layer_gradients(exact, x.double())
        with use_backend(backend):
            actual = layer_gradients(layer.to(dtype), x)
        assert all(t.dtype == dtype for t in actual)
        tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
        for a, e in zip(actual, expected, strict=True):
            assert (a.double() - e).norm() <= tolerance * max(float(e.norm()), 1.0)


@pytest.mark.parametrize("size", [7, 14, 30])
def test_gradients_are_deterministic(size: int, device: str) -> None:
    """They are equal to the bit, while PyTorch refuses every operator that is not deterministic."""
    layer = ACmix2d(8, 16, stride=2).to(device)
    x = torch.randn(6, 8, size, size, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = layer_gradients(layer, x), layer_gradients(layer, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_replaced_or_hooked_projection_is_called() -> None:
    """Adapters replace the Linear; profilers and sharding hook it."""

    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layer, x, calls = ACmix2d(4, 8), torch.randn(2, 4, 9, 9), []
    plain = layer(x)
    handle = layer.qkv.register_forward_hook(lambda *_: calls.append(1))
    assert torch.allclose(layer(x), plain, atol=1e-6) and calls
    handle.remove()
    layer.qkv.__class__ = Adapted
    shifted = layer(x)
    layer.qkv.__class__ = nn.Linear
    with torch.no_grad():
        layer.qkv.bias += 1
    assert torch.allclose(layer(x), shifted, atol=1e-6) and not torch.allclose(shifted, plain)
