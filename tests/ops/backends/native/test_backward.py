"""The gradients of the native CPU kernel, and its use with the transforms and tools of PyTorch."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from support.native_layers import BEST, CASES, EACH_ISA, RUNNABLE, layer_of, random_layers, record_calls
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo import ACmix2d
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import layer as native
from acmix_zoo.ops.backends.native.library import library

if library() is None:
    pytest.skip("no native library and no compiler", allow_module_level=True)


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Return the calls of the library. Without this check, a fallback would pass every comparison."""
    return record_calls(native, monkeypatch)


def trained(layer: ACmix2d) -> ACmix2d:
    return layer.requires_grad_(True)


def with_gradients(layer: ACmix2d, x: Tensor) -> dict[str, Tensor]:
    """Return the output, and the gradients of the input and of all parameters that need one."""
    x = x.detach().requires_grad_()
    learned = {name: p for name, p in layer.named_parameters() if p.requires_grad}
    out = layer(x)
    wave = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)
    found = torch.autograd.grad(out, [x, *learned.values()], wave)
    return {"out": out.detach(), "x": found[0], **dict(zip(learned, found[1:], strict=True))}


def assert_equal_to_reference(layer: ACmix2d, x: Tensor) -> None:
    with use_backend("reference"):
        expected = with_gradients(layer.double(), x.double())
    layer.float()
    actual = with_gradients(layer, x)
    for name, e in expected.items():
        a = actual[name]
        assert a.shape == e.shape and a.dtype == torch.float32, name
        if e.numel() == 0:
            continue
        # A gradient is the sum of at least this many terms of magnitude 0.1 that cancel. Its rounding error is that
        # of a random walk with as many steps.
        terms = expected["out"].numel() / e.numel()
        scale = max(float(e.abs().max()), 0.1 * terms**0.5, 0.1)
        if name == "qkv.bias":  # its terms are those of the weight without a factor of about 1, and may cancel more
            scale = max(scale, float(expected["qkv.weight"].abs().max()))
        error = float((a - e).abs().max())
        assert error <= 5e-5 * scale, f"{name}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("isa", EACH_ISA)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference(case: str, isa: str, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACMIX_NATIVE_ISA", isa)
    shape, outputs, options = CASES[case]
    layer = trained(layer_of(shape[1], outputs, **options))
    assert_equal_to_reference(layer, torch.randn(shape))
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize(("count", "isas"), [(25, [BEST]), pytest.param(1500, RUNNABLE, marks=pytest.mark.slow)])
def test_gradients_of_random_geometries_equal_the_reference(count: int, isas: list[str]):
    @settings(max_examples=count, deadline=None)
    @given(random_layers(kernel=7, dilation=2, heads=6, size=14, isas=isas))
    def compare(example: tuple[ACmix2d, Tensor, str]) -> None:
        layer, x, isa = example
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv("ACMIX_NATIVE_ISA", isa)
            assert_equal_to_reference(trained(layer), x)

    compare()


@pytest.mark.parametrize("inputs", [16, 256], ids=["projects again", "keeps the projections"])
@pytest.mark.parametrize("shape", [(7, 9, 9), (3, 80, 70), (70, 3, 2)], ids=str)
def test_large_batches_are_processed_a_few_images_at_a_time(inputs, shape, calls):
    """This concerns the backward pass."""
    b, h, w = shape
    layer, x = trained(layer_of(inputs, 16)), torch.randn(b, inputs, h, w)
    assert_equal_to_reference(layer, x)
    kept = native.forward(x, *tensors_of(layer, x), (4, 7, 1, 1), True)[1]
    assert kept.shape[:3] == shape


def tensors_of(layer: ACmix2d, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    _, kernels = layer.shift_conv.factors(layer.beta)
    return layer.qkv.weight, layer.qkv.bias, (None, None, kernels.detach(), None, None)


@pytest.mark.parametrize("frozen", ["x", "qkv", "qkv.bias", "alpha", "shift_conv", "position_weight"])
def test_frozen_tensors_get_no_gradient_and_change_no_other(frozen, calls):
    layer = trained(layer_of(8, 16))
    x = torch.randn(2, 8, 18, 11, requires_grad=frozen != "x")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    learned = [p for p in (x, *layer.parameters()) if p.requires_grad]
    actual = torch.autograd.grad(layer(x).sin().sum(), learned)
    with use_backend("tiles"):
        expected = torch.autograd.grad(layer(x).sin().sum(), learned)
    for a, e in zip(actual, expected, strict=True):
        assert (a - e).abs().max() <= 5e-5 * max(float(e.abs().max()), 1.0)
    assert calls == ["forward", "backward"]


@pytest.mark.parametrize("batch", [1, 5, 40])
def test_any_number_of_threads_gives_the_same_bits(batch):
    layer, x, before = layer_of(16, 16, stride=2), torch.randn(batch, 16, 20, 21), torch.get_num_threads()
    weight, bias, mixing = tensors_of(layer, x)
    mixing = (torch.randn(20, 21, 4), None, mixing[2], torch.randn(1), torch.randn(16))
    arguments = (torch.randn(batch, 16, 10, 11), torch.empty(0), x, weight, bias, mixing, (4, 7, 2, 1), [True] * 8)
    try:
        results = []
        for threads in range(1, 9):
            torch.set_num_threads(threads)
            results.append(native.backward(*arguments))
    finally:
        torch.set_num_threads(before)
    for i, name in enumerate(["x", "weight", "bias", "pe", "fc", "shift", "alpha"]):  # PyTorch sums up the offset's
        if name != "fc":
            assert all(torch.equal(result[i], results[0][i]) for result in results), name


def test_few_images_for_many_threads(calls, monkeypatch):
    """The backward pass shares images among threads, so the Python backend is faster for one image and many threads."""
    layer, x = trained(layer_of(256, 16)), torch.randn(1, 256, 9, 9)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_equal_to_reference(layer, x)
    assert calls == ["forward"]


def test_one_alpha_per_channel_uses_the_python_backend(calls):
    """The library only computes the gradient of a single alpha."""
    layer = layer_of(8, 16)
    x, (weight, bias, mixing) = torch.randn(2, 8, 9, 9), tensors_of(layer, torch.randn(2, 8, 9, 9))
    pe = torch.randn(9, 9, 4)
    alpha = torch.randn(16, requires_grad=True)

    def run() -> Tensor:
        from acmix_zoo.ops.acmix import Geometry, acmix

        return acmix(x, weight, bias, (pe, None, mixing[2], alpha, None), Geometry(4, 7, 1, 1))

    (actual,) = torch.autograd.grad(run().sin().sum(), alpha)
    assert calls == ["forward"]
    with use_backend("reference"):
        (expected,) = torch.autograd.grad(run().sin().sum(), alpha)
    assert torch.allclose(actual, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("inputs", [pytest.param(8, marks=pytest.mark.slow), 256])
def test_a_compiled_layer_equals_eager_mode(inputs: int, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    """One graph with the operator serves two sizes.

    A wide layer keeps its projections, as in eager mode. A backend that is forced when the graph runs is used.
    """
    sizes: list[int] = []
    forward, backward = native.forward, native.backward
    monkeypatch.setattr(native, "backward", lambda *args: sizes.append(len(args[1])) or backward(*args))
    layer = trained(layer_of(inputs, 16))
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True)
    for size in (12, 15):
        x = torch.randn(2, inputs, size, size)
        expected, actual = with_gradients(layer, x), with_gradients(compiled, x)  # type: ignore[arg-type]
        for (name, e), a in zip(expected.items(), actual.values(), strict=True):
            assert (a - e).abs().max() <= 1e-5 * max(float(e.abs().max()), 1.0), name
    assert calls == ["forward", "backward"] * 4 and sizes == [0 if inputs == 8 else 2] * 4
    monkeypatch.setattr(native, "forward", lambda *args: [torch.full_like(t, torch.nan) for t in forward(*args)])
    with use_backend("reference"):
        actual = with_gradients(compiled, x)  # type: ignore[arg-type]
        for (name, e), a in zip(expected.items(), actual.values(), strict=True):
            assert (a - e).abs().max() <= 5e-5 * max(float(e.abs().max()), 1.0), name
    assert len(sizes) == 4


def test_projections_get_no_gradient():
    """Not even one of zeros, which would take as much memory as the projections."""
    layer, x = trained(layer_of(256, 16)), torch.randn(2, 256, 20, 20)
    out = layer(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out.sum().backward()
    kept = 2 * 20 * 20 * native.pixel_floats(16, 4) * 4
    assert max(event.cpu_memory_usage for event in profile.events() if "zeros" in event.name) < kept


def test_exported_graphs_do_not_contain_the_operator():
    layer, x = layer_of(8, 16), torch.randn(1, 8, 9, 9)
    exported = torch.export.export(layer, (x,))
    assert "acmix_zoo." not in exported.graph_module.code
    assert (exported.module()(x) - layer(x)).abs().max() <= 1e-5
    traced = torch.jit.trace(layer, x)
    assert "acmix_zoo::" not in str(traced.inlined_graph)


def test_transforms_second_derivatives_and_checkpoints(calls):
    """Derivatives that the library lacks use PyTorch's operators. Checkpoints and copies of the layer work."""
    layer = trained(layer_of(8, 16))
    x = torch.randn(3, 8, 7, 6)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).sin().sum()

    with_library = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    assert calls == ["forward", "backward"]
    by_transform = grad(loss)(parameters, x)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))
    again = torch.autograd.grad(checkpoint(loss, parameters, x, use_reentrant=False), list(parameters.values()))
    for name, a, c in zip(parameters, with_library, again, strict=True):
        scale = 1e-4 * max(float(a.abs().max()), 1.0)
        assert (by_transform[name] - a).abs().max() <= scale, name
        assert (each[name].sum(0) - a).abs().max() <= scale, name
        assert torch.equal(a, c), name
    first = torch.autograd.grad(loss(parameters, x), layer.qkv.weight, create_graph=True)[0]
    second = torch.autograd.grad(first.square().sum(), layer.qkv.weight)[0]
    with use_backend("reference"):
        first = torch.autograd.grad(loss(parameters, x), layer.qkv.weight, create_graph=True)[0]
        expected = torch.autograd.grad(first.square().sum(), layer.qkv.weight)[0]
    assert (second - expected).abs().max() <= 1e-3 * expected.abs().max()
    assert torch.equal(copy.deepcopy(layer)(x), layer(x))


def test_the_output_may_be_changed_in_place():
    """`nn.ReLU(inplace=True)` does this in a folded network, which has no batch norm in between."""
    layer, x = layer_of(8, 16), torch.randn(1, 8, 9, 9).contiguous(memory_format=torch.channels_last)
    for learned in (False, True):
        layer.requires_grad_(learned)
        out = layer(x)
        assert torch.equal(nn.ReLU(inplace=True)(out), layer(x).relu())


def test_autocast_runs_the_python_backend(calls):
    layer = trained(layer_of(8, 16))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(torch.randn(1, 8, 9, 9)).dtype == torch.bfloat16
    assert not calls


def test_the_operator_passes_opcheck():
    """PyTorch's own checks of schema, fake tensors and autograd registration."""
    layer, x = layer_of(8, 16), torch.randn(2, 8, 9, 9, requires_grad=True)
    weight, bias, mixing = tensors_of(layer, x)
    pe, alpha = torch.randn(9, 9, 4), torch.randn(1)
    for keep in (0, 2):
        arguments = (x, weight, bias, pe, None, mixing[2], alpha, None, 4, 7, 1, 1, keep)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.acmix_zoo.acmix, arguments, test_utils=tests)


def test_flops_are_those_of_the_definition():
    """The output takes two FLOPs per multiply-accumulate of the definition, and the gradients twice as many. With four
    heads, the composed convolution has as many as mixing and shifting."""
    layer, x = trained(layer_of(16, 32)), torch.randn(2, 16, 12, 12, requires_grad=True)
    weight, bias, mixing = tensors_of(layer, x)
    arguments = (x, weight, bias, torch.randn(12, 12, 8), None, mixing[2], torch.randn(1), None, 4, 7, 1, 1, 0)
    with FlopCounterMode(display=False) as counter:
        out, _ = torch.ops.acmix_zoo.acmix(*arguments)
    assert counter.get_total_flops() == 2 * sum(layer.stage_macs(x))
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad(out.sum(), [x, layer.qkv.weight])
    assert counter.get_total_flops() == 4 * sum(layer.stage_macs(x))


def test_an_optimiser_step_takes_effect_at_once():
    """No packed weights are kept between calls."""
    layer, x = trained(layer_of(8, 16)), torch.randn(2, 8, 9, 9)
    before = layer(x)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(layer.parameters()) * 1.1, layer.parameters())
    after = layer(x)
    with use_backend("tiles"):
        expected = layer(x)
    assert not torch.allclose(before, after) and torch.allclose(after, expected, atol=1e-4)
