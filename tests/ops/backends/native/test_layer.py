"""The native CPU kernel against the readable reference in float64: geometries, layouts, threads, special values."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from support.native_layers import BEST, CASES, EACH_ISA, RUNNABLE, layer_of, random_layers
from torch import Tensor, nn

from acmix_zoo import ACmix2d
from acmix_zoo.layers.deploy import DeployedACmix2d
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import layer as native
from acmix_zoo.ops.backends.native.library import library

if library() is None:
    pytest.skip("no native library and no compiler", allow_module_level=True)


@pytest.fixture(params=EACH_ISA)
def isa(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("ACMIX_NATIVE_ISA", request.param)
    return str(request.param)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[int]]:
    """Count the calls of the library. Without this check, a fallback would pass every comparison."""
    seen: list[int] = []
    original = native.forward
    monkeypatch.setattr(native, "forward", lambda *args: seen.append(1) or original(*args))
    yield seen


def reference(layer: ACmix2d, x: torch.Tensor) -> torch.Tensor:
    with use_backend("reference"):
        out = layer.double()(x.double())
    layer.float()
    return out


def assert_equal_to_reference(layer: ACmix2d, x: torch.Tensor) -> None:
    expected = reference(layer, x)
    actual = layer(x)
    assert actual.shape == expected.shape and actual.dtype == torch.float32
    # Sums of up to k²·3·heads products, then a softmax whose logits are sums of d products of magnitude one.
    scale = max(float(expected.abs().max()), 1.0) if expected.numel() else 1.0
    assert float((actual - expected).abs().max() if expected.numel() else 0) <= 2e-5 * scale


@pytest.mark.parametrize("case", CASES)
@torch.no_grad()
def test_equals_the_reference(case: str, isa: str, calls: list[int]):
    shape, outputs, options = CASES[case]
    layer = layer_of(shape[1], outputs, **options)
    assert_equal_to_reference(layer, torch.randn(shape))
    assert calls, "the library was not called"


@pytest.mark.parametrize(("count", "isas"), [(40, [BEST]), pytest.param(2000, RUNNABLE, marks=pytest.mark.slow)])
@torch.no_grad()
def test_random_geometries_equal_the_reference(count: int, isas: list[str]):
    @settings(max_examples=count, deadline=None)
    @given(random_layers(isas=isas))
    def compare(example: tuple[ACmix2d, Tensor, str]) -> None:
        layer, x, isa = example
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACMIX_NATIVE_ISA", isa)
            assert_equal_to_reference(layer, x)

    compare()


@pytest.mark.parametrize(
    "view",
    [
        lambda x: x,
        lambda x: x.contiguous(memory_format=torch.channels_last),
        lambda x: x.transpose(2, 3),
        lambda x: x[:, :, ::2, 1:],
        lambda x: x.flip(3),
        lambda x: x[:1].expand(3, -1, -1, -1),
    ],
    ids=["contiguous", "channels_last", "transposed", "sliced", "flipped", "expanded"],
)
@torch.no_grad()
def test_any_memory_layout_is_accepted(view, calls):
    layer = layer_of(8, 16)
    x = view(torch.randn(2, 8, 18, 13))
    expected = layer(x.clone(memory_format=torch.contiguous_format))
    actual = layer(x)
    assert torch.equal(actual, expected) and len(calls) == 2
    last = x.is_contiguous(memory_format=torch.channels_last)
    assert actual.is_contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)


@pytest.mark.parametrize(
    ("shape", "options"),
    [
        ((1, 16, 30, 31), {"stride": 2}),
        ((3, 256, 9, 9), {"stride": 2}),
        ((8, 16, 9, 9), {"stride": 2}),
        ((5, 8, 14, 14), {"stride": 2}),
        ((1, 64, 200, 300), {"stride": 2}),
        ((1, 16, 41, 7), {}),
        ((3, 8, 57, 5), {"dilation": 2, "kernel_att": 5}),
        ((1, 8, 33, 5), {"paths": "convolution", "kernel_conv": 5}),
        ((2, 300, 7, 7), {}),
        ((1, 300, 7, 7), {"paths": "attention"}),
    ],
)
@torch.no_grad()
def test_any_number_of_threads_gives_the_same_bits(shape, options):
    """Threads share images, bands of rows or weights, but the arithmetic does not depend on the thread."""
    layer, x, before = layer_of(shape[1], 16, **options), torch.randn(shape), torch.get_num_threads()
    try:
        results = []
        for threads in range(1, 9):
            torch.set_num_threads(threads)
            results.append(layer(x))
    finally:
        torch.set_num_threads(before)
    assert all(torch.equal(result, results[0]) for result in results)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
@torch.no_grad()
def test_nan_and_infinity_affect_only_the_right_positions(value, paths, isa):
    """The output is not finite exactly where that of the reference is not finite."""
    layer = layer_of(8, 16, paths=paths, kernel_att=3)
    x = torch.randn(2, 8, 12, 11)
    x[0, 3, 5, 6] = value
    expected = reference(layer, x)
    actual = layer(x)
    assert torch.equal(actual.isfinite(), expected.isfinite())
    assert not expected.isfinite().all()
    finite = expected.isfinite()
    assert (actual[finite] - expected[finite]).abs().max() <= 2e-5 * expected[finite].abs().max()


@torch.no_grad()
def test_large_logits_do_not_overflow(isa):
    """The rounding error of logits around 2000 is 2000 · 2^-24 ≈ 1e-4, and so is the relative error of the output."""
    layer, x = layer_of(8, 16, paths="attention"), torch.randn(1, 8, 9, 9) * 30
    expected = reference(layer, x)
    assert (layer(x) - expected).abs().max() <= 2e-4 * expected.abs().max()


class Tagged(torch.Tensor):
    """A subclass that a user might write."""


@torch.no_grad()
def test_unsupported_layers_use_the_python_backend(calls):
    """This includes other dtypes, many heads, subclasses and a forced backend."""
    layer, x = layer_of(8, 16), torch.randn(1, 8, 9, 9)
    tensors = (layer.qkv.weight, layer.qkv.bias, [None] * 5)
    assert native.unsupported_reason(x, *tensors, 4) is None
    assert "float32; this is float64" in native.unsupported_reason(x.double(), *tensors, 4)
    assert "up to 16 heads, but this layer has 32" in native.unsupported_reason(x, *tensors, 32)
    assert "CPU only; this is meta" in native.unsupported_reason(x.to("meta"), *tensors, 4)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "parallel", lambda: None)
        patch.setattr(torch, "get_num_threads", lambda: 2)
        assert "no OpenMP threads" in native.unsupported_reason(x, *tensors, 4)
    layer.double()(x.double())
    layer.bfloat16()(x.bfloat16())
    layer.float()
    layer(x.as_subclass(Tagged))
    with use_backend("tiles"):
        layer(x)
    assert not calls
    with use_backend("native"):
        layer(x)
    layer(x)
    assert len(calls) == 2


@pytest.mark.parametrize("default", [torch.float64, torch.bfloat16])
def test_torchs_default_dtype_has_no_influence(default: torch.dtype, calls: list[int]) -> None:
    layer, x = layer_of(8, 16), torch.randn(2, 8, 9, 7)
    expected = layer(x)
    torch.set_default_dtype(default)
    try:
        actual = layer(x)
    finally:
        torch.set_default_dtype(torch.float32)
    assert len(calls) == 2 and actual.dtype == torch.float32 and torch.equal(actual, expected)


def test_deployed_layer_follows_autocast(calls: list[int]) -> None:
    """The library computes in float32 only, so that autocast must reach the Python backend."""
    layer = ACmix2d(8, 16).eval()
    deployed, x = DeployedACmix2d(layer, nn.BatchNorm2d(16).eval()), torch.randn(2, 8, 9, 7)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        assert deployed(x).dtype == layer(x).dtype == torch.bfloat16
    assert not calls
