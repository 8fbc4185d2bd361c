"""SAN's sums in few kernel launches. They are used on GPUs; here they are forced on every device."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from support.aggregation import SHAPES, Shape, example, solved_example, with_gradients
from torch.utils._python_dispatch import TorchDispatchMode

from acmix_zoo.ops import aggregation
from acmix_zoo.ops.aggregation import aggregate
from acmix_zoo.ops.backends import window_sums

LARGE = Shape((2, 16, 12, 12), 2, 7)
# Operators that only change strides launch no kernel.
VIEWS = {"slice", "view", "permute", "unfold", "unsqueeze", "alias", "promote_types", "new_empty", "split",
         "empty_like", "_unsafe_view", "empty", "detach", "as_strided"}  # fmt: skip


@pytest.fixture(autouse=True)
def _force_window_sums(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(aggregation, "_is_launch_bound", lambda value: True)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("chunk_bytes", [1 << 30, 3000, 1], ids=["all images", "one image", "one row"])
def test_agrees_with_the_reference(
    shape: Shape, chunk_bytes: int, device: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(window_sums, "_PRODUCT_BYTES", chunk_bytes)
    tensors, expected = solved_example(shape)
    for a, e in zip(with_gradients(aggregate, tensors.to(device), shape.kernel), expected, strict=True):
        torch.testing.assert_close(a.cpu(), e, rtol=0, atol=1e-12)


def test_empty_batch(device: str) -> None:
    shape = Shape((0, 4, 5, 5), 2, 3)
    assert [len(t) for t in with_gradients(aggregate, example(shape).to(device), 3)] == [0, 0, 0]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_only_rounds_the_results(dtype: torch.dtype, device: str) -> None:
    """Products and sums are in float32, also those over the reflected border in the gradient of the value.

    Compared with the exact result for the same rounded inputs, the only error is the rounding of each result, half a
    unit in the last place.
    """
    tensors = example(LARGE).to(device).to(dtype)
    exact = with_gradients(aggregate, tensors.to(torch.float64), 7)
    for a, e in zip(with_gradients(aggregate, tensors, 7), exact, strict=True):
        assert a.dtype == dtype
        # 49 float32 terms that cancel cost at most 49 float32 roundings of the largest.
        slack = 49 * torch.finfo(torch.float32).eps * e.abs().max()
        assert ((a.double() - e).abs() <= torch.finfo(dtype).eps / 2 * e.abs() + slack).all()


class CountLaunches(TorchDispatchMode):
    """Counts the operators that compute something."""

    def __init__(self) -> None:
        super().__init__()
        self.counts: Counter[str] = Counter()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = func._schema.name.removeprefix("aten::")
        if name not in VIEWS:
            self.counts[name] += 1
        return func(*args, **(kwargs or {}))


def test_launches_few_kernels() -> None:
    """A 7×7 aggregation and its gradient take at most 45; a loop over the 49 offsets takes more than 200."""
    value, weight, grad = example(LARGE).to(torch.float32)
    with CountLaunches() as mode:
        aggregation._run_chunks(value, weight, 7)
        aggregation._run_chunks_backward(grad, value, weight, 7)
    assert 0 < mode.counts.total() <= 45, mode.counts


def test_repeated_calls_are_bit_identical(device: str) -> None:
    tensors = example(LARGE).to(device).to(torch.float32)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = (with_gradients(aggregate, tensors, 7) for _ in range(2))
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
