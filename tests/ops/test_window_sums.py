"""SAN's sums in few kernel launches, as used on GPUs; here they are forced on every device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from acmix_zoo.ops import aggregation
from acmix_zoo.ops.aggregation import aggregate, aggregate_reference
from acmix_zoo.ops.backends import window_sums as aggregation_windows

SHAPES = [((2, 8, 5, 4), 4, 3), ((1, 6, 9, 7), 2, 5), ((2, 2, 3, 2), 1, 7), ((1, 4, 1, 1), 2, 3)]
# Operators that only change strides launch no kernel.
VIEWS = {"slice", "view", "permute", "unfold", "unsqueeze", "alias", "promote_types", "new_empty", "split",
         "empty_like", "_unsafe_view", "empty", "detach", "as_strided"}  # fmt: skip


@pytest.fixture(autouse=True)
def forced(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "_is_launch_bound", lambda value: True)


class Launches(TorchDispatchMode):
    """Counts the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def gradients(f, value, weight, kernel, grad):  # type: ignore[no-untyped-def]
    leaves = [value.clone().requires_grad_(), weight.clone().requires_grad_()]
    out = f(*leaves, kernel)
    return out.detach(), *torch.autograd.grad(out, leaves, grad)


def example(shape, shared: int, kernel: int, dtype: torch.dtype = torch.float64) -> list[torch.Tensor]:  # type: ignore[no-untyped-def]
    """Value, weight and a gradient."""
    weight = torch.randn(shape[0], kernel**2 * shared, *shape[2:], dtype=torch.float64)
    return [t.to(dtype) for t in (torch.randn(shape, dtype=torch.float64), weight, torch.randn(shape).double())]


@pytest.mark.parametrize(("shape", "shared", "kernel"), SHAPES)
@pytest.mark.parametrize("size", [1 << 30, 3000, 1])  # of a chunk: all images, one image, one row
def test_equals_the_reference(shape, shared: int, kernel: int, size: int, device: str, monkeypatch) -> None:
    monkeypatch.setattr(aggregation_windows, "_PRODUCT_BYTES", size)
    value, weight, grad = example(shape, shared, kernel)
    expected = gradients(aggregate_reference, value, weight, kernel, grad)
    found = gradients(aggregate, value.to(device), weight.to(device), kernel, grad.to(device))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a.cpu(), b, rtol=0, atol=1e-12)


def test_empty_batch(device: str) -> None:
    value, weight, grad = (t[:0].to(device) for t in example((1, 4, 5, 5), 2, 3))
    assert [len(t) for t in gradients(aggregate, value, weight, 3, grad)] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_adds_only_the_rounding_of_results(dtype: torch.dtype, device: str) -> None:
    """Products and sums are in float32. Compared with the exact result for the same rounded inputs, the only error is
    the rounding of each result, half a unit in the last place. The same holds for the gradient of the value, which is
    also accumulated over the reflected border in float32."""
    value, weight, grad = (t.to(device) for t in example((2, 16, 12, 12), 2, 7, dtype))
    exact = gradients(aggregate, value.double(), weight.double(), 7, grad.double())
    for a, e in zip(gradients(aggregate, value, weight, 7, grad), exact, strict=True):
        assert a.dtype == dtype
        # 49 float32 terms that cancel cost at most 49 float32 roundings of the largest.
        slack = 49 * torch.finfo(torch.float32).eps * e.abs().max()
        assert ((a.double() - e).abs() <= torch.finfo(dtype).eps / 2 * e.abs() + slack).all()


def test_few_launches() -> None:
    """For a 7×7 aggregation and its gradient, where a loop over the 49 offsets takes more than 200."""
    value, weight, grad = example((2, 16, 12, 12), 2, 7, torch.float32)
    with Launches() as seen:
        aggregation._run_chunks(value, weight, 7)
        aggregation._run_chunks_backward(grad, value, weight, 7)
    assert seen.counts.total() <= 45, seen.counts


def test_repeats_to_the_bit(device: str) -> None:
    tensors = [t.to(device) for t in example((2, 16, 12, 12), 2, 7, torch.float32)]
    value, weight, grad = tensors
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (gradients(aggregate, value, weight, 7, grad) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
