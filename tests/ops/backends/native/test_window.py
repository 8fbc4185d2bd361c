"""Swin's layer in the native CPU kernel: equal to plain operators in float64, and an operator like any other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native_layers import BEST, EACH_ISA, RUNNABLE, problem
from torch import Tensor

from acmix_zoo.ops.backends.native import window as native
from acmix_zoo.ops.backends.native.library import library
from acmix_zoo.ops.window_paths import (
    WindowGeometry,
    WindowTensors,
    window_paths,
    window_paths_plain,
)

if library() is None:
    pytest.skip("no native library and no compiler", allow_module_level=True)


CASES: dict[str, tuple[tuple[Any, ...], dict[str, Any]]] = {
    "Swin-T": ((2, (2, 3), (7, 7), 3, 32), dict(shift=(3, 3))),
    "Swin-T, one window": ((2, (1, 1), (7, 7), 6, 32), {}),
    "padded": ((1, (2, 2), (7, 7), 4, 32), dict(shift=(3, 3), crop=(4, 1))),
    "convolution before the roll": ((1, (3, 2), (4, 5), 4, 16), dict(shift=(2, 2), crop=(3, 2), rolled=False)),
    "shifted along the rows": ((2, (1, 3), (5, 4), 2, 9), dict(shift=(0, 2), rolled=False)),
    "one position": ((1, (2, 3), (1, 1), 1, 1), dict(kernel=1)),
    "more channels than two vectors": ((1, (1, 2), (3, 3), 5, 35), dict(kernel=5)),
    "wide rows": ((1, (1, 9), (2, 4), 7, 8), {}),
    "heads first": ((1, (2, 2), (4, 3), 3, 18), dict(shift=(1, 1), heads_first=True)),
    "attention alone": ((2, (2, 2), (7, 7), 2, 17), dict(shift=(3, 3), paths="attention")),
    "convolution alone": ((2, (2, 2), (3, 7), 13, 3), dict(shift=(1, 3), paths="convolution")),
    "empty batch": ((0, (2, 2), (7, 7), 3, 32), {}),
}


def results_and_gradients(
    run: Any, tensors: Sequence[Tensor | None], geometry: WindowGeometry, dtype: torch.dtype
) -> list[Tensor]:
    """Return the results of both paths and the gradients of all tensors except the mask, which has none."""
    leaves = [None if t is None else t.detach().to(dtype).requires_grad_(i != 2) for i, t in enumerate(tensors)]
    found = run(leaves[0], WindowTensors(*leaves[1:]), geometry)
    results = [t for t, weight in zip(found, (leaves[1], leaves[4]), strict=True) if weight is not None]
    generator = torch.Generator().manual_seed(1)
    gradients = [torch.randn(t.shape, generator=generator).to(dtype) for t in results]
    learned = [t for t in leaves if t is not None and t.requires_grad]
    return [*(t.detach() for t in results), *torch.autograd.grad(results, learned, gradients)]


def assert_equal_to_plain(tensors: Sequence[Tensor | None], geometry: WindowGeometry) -> None:
    expected = results_and_gradients(window_paths_plain, tensors, geometry, torch.float64)
    actual = results_and_gradients(window_paths, tensors, geometry, torch.float32)
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert a.shape == e.shape and a.dtype == torch.float32
        if e.numel():
            assert float((a - e).abs().max()) <= 1e-5 * max(float(e.abs().max()), 1.0), i


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("case", CASES)
def test_equals_plain_operators(case: str, isa: str, window_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ACMIX_NATIVE_ISA", isa)
    arguments, options = CASES[case]
    assert_equal_to_plain(*problem(*arguments, **options))
    assert window_calls == ["forward", "backward"]


@settings(max_examples=15, deadline=None)
@given(data=st.data())
def test_any_geometry(data: st.DataObject) -> None:
    check_any_geometry(data, [BEST])


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_many_geometries(data: st.DataObject) -> None:
    check_any_geometry(data, RUNNABLE)


def check_any_geometry(data: st.DataObject, isas: list[str]) -> None:
    draw = data.draw
    window, grid = draw(st.tuples(*[st.integers(1, 7)] * 2)), draw(st.tuples(*[st.integers(1, 3)] * 2))
    arguments = (draw(st.integers(1, 3)), grid, window, draw(st.integers(1, 9)), draw(st.integers(1, 40)))
    options = dict(
        shift=tuple(draw(st.integers(0, side - 1)) if n > 1 else 0 for n, side in zip(grid, window, strict=True)),
        crop=tuple(draw(st.integers(0, side - 1)) for side in window),
        kernel=draw(st.sampled_from([1, 3, 5])),
        paths=draw(st.sampled_from(["both", "both", "attention", "convolution"])),
        rolled=draw(st.booleans()),
        heads_first=draw(st.booleans()),
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACMIX_NATIVE_ISA", draw(st.sampled_from(isas)))
        assert_equal_to_plain(*problem(*arguments, **options))


@pytest.mark.parametrize("rolled", [True, False])
@pytest.mark.parametrize("batch", [1, 5, 40])
def test_any_number_of_threads_gives_the_same_bits(batch: int, rolled: bool) -> None:
    tensors, geometry = problem(batch, (2, 3), (5, 6), 3, 8, shift=(2, 3), crop=(1, 1), rolled=rolled)
    projections, *weights = tensors
    assert projections is not None
    shape, before = (batch * geometry.size[0] * geometry.size[1], 24), torch.get_num_threads()
    gradients = torch.randn(2, *shape)
    results = []
    try:
        for threads in (1, 2, 3, 8):
            torch.set_num_threads(threads)
            found = native.forward(projections, weights, geometry)
            results.append((*found, *native.backward(*gradients, projections, weights, geometry, (True, True))))
    finally:
        torch.set_num_threads(before)
    for result in results:
        for i, (a, e) in enumerate(zip(result, results[0], strict=True)):
            assert a is not None and e is not None and torch.equal(a, e), i


def test_operator_checks() -> None:
    """PyTorch's own checks of schema, fake tensors and autograd registration."""
    tensors, geometry = problem(2, (1, 2), (2, 3), 3, 8, shift=(0, 1))
    assert tensors[0] is not None
    tests = ("test_schema", "test_autograd_registration", "test_faketensor")
    arguments = (tensors[0].requires_grad_(), *tensors[1:], *geometry)
    torch.library.opcheck(torch.ops.acmix_zoo.window_paths, arguments, test_utils=tests)
    gradients = torch.randn(2, 24, 24)
    torch.library.opcheck(
        torch.ops.acmix_zoo.window_paths_backward,
        (*gradients, tensors[0].detach(), *tensors[1:], *geometry, [True, True]),
        test_utils=("test_schema", "test_faketensor"),
    )
