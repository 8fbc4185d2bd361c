"""A batch that is processed in chunks: what it keeps, which gradients it computes, and in which context."""

from __future__ import annotations

import threading

import pytest
import torch
from support.gradients import assert_all_close, layer_gradients, randomize

from acmix_zoo import ACmix2d
from acmix_zoo.ops import dispatch, local_attention, use_backend


@pytest.fixture
def one_image_per_chunk(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dispatch, "_CHUNK_BYTES", 1)


@pytest.mark.parametrize("frozen", ["x", "qkv", "alpha", "shift_conv", "position_weight"])
def test_frozen_tensors_get_no_gradient(frozen: str, one_image_per_chunk: None) -> None:
    layer = randomize(ACmix2d(4, 8).double())
    x = torch.randn(3, 4, 17, 18, dtype=torch.float64, requires_grad=frozen != "x")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    trained = [p for p in (x, *layer.parameters()) if p.requires_grad]
    layer(x).sin().sum().backward()
    with use_backend("reference"):
        expected = torch.autograd.grad(layer(x).sin().sum(), trained)
    assert_all_close([p.grad for p in trained], expected)
    assert all(p.grad is None for p in (x, *layer.parameters()) if not p.requires_grad)


def test_training_keeps_little_but_the_input() -> None:
    """For 64 channels at 56×56, neither projections nor gathered keys are kept for the gradient."""
    kept: dict[int, int] = {}

    def record(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    layer = ACmix2d(64, 64)
    x = torch.randn(4, 64, 56, 56, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(record, lambda x: x):
        layer(x)
    parameters = 4 * sum(p.numel() for p in layer.parameters())
    positions = 4 * 56 * 56 * 16
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + 2 * parameters + positions


def test_autocast_gives_the_same_dtypes_and_values_as_the_whole_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = randomize(ACmix2d(4, 8))
    x = torch.randn(3, 4, 18, 18)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        expected = layer_gradients(layer, x)
        monkeypatch.setattr(dispatch, "_CHUNK_BYTES", 1)
        actual = layer_gradients(layer, x)
    assert actual[0].dtype == torch.bfloat16 and actual[1].dtype == torch.float32
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).norm() <= 0.03 * max(float(e.norm()), 1.0)


def test_backward_pass_uses_the_backend_of_its_forward_pass(
    one_image_per_chunk: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The backward pass recomputes chunks, perhaps in another thread and after `use_backend` has ended."""
    calls = []
    offset_attention = local_attention.offset_attention
    monkeypatch.setattr(local_attention, "offset_attention", lambda *args: calls.append(1) or offset_attention(*args))
    layer = ACmix2d(4, 8)
    with use_backend("offset"):
        out = layer(torch.randn(2, 4, 18, 18))
    assert len(calls) == 2
    thread = threading.Thread(target=out.sum().backward)
    thread.start()
    thread.join()
    assert len(calls) == 4
