"""The gradients of the native CPU kernel, and that it behaves as an operator under PyTorch's transforms and tools."""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from support.native_layers import CASES, RUNNABLE, layer_of
from torch import Tensor, nn
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo import ACmix2d
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import layer as native


@pytest.fixture(autouse=True)
def calls(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The calls of the library, because a fallback would pass every comparison."""
    seen: list[str] = []
    for name in ("forward", "backward"):
        original = getattr(native, name)
        monkeypatch.setattr(
            native, name, lambda *args, name=name, original=original: seen.append(name) or original(*args)
        )
    yield seen


def trained(layer: ACmix2d) -> ACmix2d:
    return layer.requires_grad_(True)


def with_gradients(layer: ACmix2d, x: Tensor) -> dict[str, Tensor]:
    """The output and the gradients of the input and of all parameters that need one."""
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
        # A gradient is a sum of this many terms or more, of magnitude 0.1, which cancel: it is rounded like their
        # sum if they had the same sign at random.
        terms = expected["out"].numel() / e.numel()
        scale = max(float(e.abs().max()), 0.1 * terms**0.5, 0.1)
        error = float((a - e).abs().max())
        assert error <= 5e-5 * scale, f"{name}: {error:.1e} of {scale:.1e}"


@pytest.mark.parametrize("isa", RUNNABLE)
@pytest.mark.parametrize("case", CASES)
def test_gradients_equal_the_reference(case: str, isa: str, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACMIX_NATIVE_ISA", isa)
    shape, outputs, options = CASES[case]
    layer = trained(layer_of(shape[1], outputs, **options))
    assert_equal_to_reference(layer, torch.randn(shape))
    assert calls == ["forward", "backward"]


@settings(max_examples=25, deadline=None)
@given(data=st.data())
def test_any_geometry(data: st.DataObject):
    check_any_geometry(data)


@pytest.mark.slow
@settings(max_examples=1500, deadline=None)
@given(data=st.data())
def test_thousands_of_geometries(data: st.DataObject):
    check_any_geometry(data)


def check_any_geometry(data: st.DataObject) -> None:
    draw = data.draw
    options = dict(
        heads=draw(st.integers(1, 6)),
        kernel_att=draw(st.sampled_from([1, 3, 5, 7])),
        kernel_conv=draw(st.sampled_from([1, 3, 5])),
        stride=draw(st.integers(1, 3)),
        dilation=draw(st.integers(1, 2)),
        paths=draw(st.sampled_from(["both", "both", "attention", "convolution"])),
    )
    shape = (draw(st.integers(1, 3)), draw(st.integers(1, 20)), draw(st.integers(1, 14)), draw(st.integers(1, 14)))
    layer = layer_of(shape[1], options["heads"] * draw(st.integers(1, 6)), draw(st.integers(0, 99)), **options)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ACMIX_NATIVE_ISA", draw(st.sampled_from(RUNNABLE)))
        assert_equal_to_reference(trained(layer), torch.randn(shape))


@pytest.mark.parametrize("inputs", [16, 256], ids=["projects again", "keeps the projections"])
@pytest.mark.parametrize("shape", [(7, 9, 9), (3, 80, 70), (70, 3, 2)], ids=str)
def test_batches_in_portions(inputs, shape, calls):
    """Batches of which the backward pass works on a few images at a time."""
    b, h, w = shape
    layer, x = trained(layer_of(inputs, 16)), torch.randn(b, inputs, h, w)
    assert_equal_to_reference(layer, x)
    kept = native.forward(x, *tensors_of(layer, x), (4, 7, 1, 1), True)[1]
    assert kept.shape[:3] == shape


def tensors_of(layer: ACmix2d, x: Tensor) -> tuple[Tensor, Tensor, tuple[Tensor | None, ...]]:
    _, kernels = layer.shift_conv.factors(layer.beta)
    return layer.qkv.weight, layer.qkv.bias, (None, None, kernels.detach(), None, None)


@pytest.mark.parametrize("frozen", ["x", "qkv", "qkv.bias", "alpha", "shift_conv", "position_weight"])
def test_frozen_parts(frozen, calls):
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


def test_an_alpha_for_each_channel_has_a_gradient_by_the_python_backend(calls):
    """The library only has the gradient of one alpha."""
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
def test_compiled(inputs: int, calls: list[str], monkeypatch: pytest.MonkeyPatch):
    """The graph holds the operator; forward and gradients are those of eager mode, for two sizes with one graph.

    A wide layer keeps its projections, as in eager mode. A backend that is forced when the graph runs is used.
    """
    sizes: list[int] = []
    forward, backward = native.forward, native.backward
    monkeypatch.setattr(
        native, "backward", lambda grad, kept, *more: sizes.append(len(kept)) or backward(grad, kept, *more)
    )
    layer = trained(layer_of(inputs, 16))
    compiled = torch.compile(layer, backend="aot_eager", dynamic=True)
    for size in (12, 15):
        x = torch.randn(2, inputs, size, size)
        expected, actual = with_gradients(layer, x), with_gradients(compiled, x)  # type: ignore[arg-type]
        for name, e in expected.items():
            assert torch.equal(actual[name], e), name
    assert calls == ["forward", "backward"] * 4 and sizes == [0 if inputs == 8 else 2] * 4
    monkeypatch.setattr(native, "forward", lambda *args: [torch.full_like(t, torch.nan) for t in forward(*args)])
    with use_backend("reference"):
        for name, found in with_gradients(compiled, x).items():  # type: ignore[arg-type]
            assert (found - expected[name]).abs().max() <= 5e-5 * max(float(expected[name].abs().max()), 1.0), name
    assert len(sizes) == 4


def test_projections_get_no_gradient():
    """Not even one of zeros, which would take as much memory as the projections."""
    layer, x = trained(layer_of(256, 16)), torch.randn(2, 256, 20, 20)
    out = layer(x)
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True) as profile:
        out.sum().backward()
    kept = 2 * 20 * 20 * native.pixel_floats(16, 4) * 4
    assert max(event.cpu_memory_usage for event in profile.events() if "zeros" in event.name) < kept


def test_exported_graphs_do_not_hold_the_operator():
    layer, x = layer_of(8, 16), torch.randn(1, 8, 9, 9)
    exported = torch.export.export(layer, (x,))
    assert "acmix_zoo." not in exported.graph_module.code
    assert (exported.module()(x) - layer(x)).abs().max() <= 1e-5
    traced = torch.jit.trace(layer, x)
    assert "acmix_zoo::" not in str(traced.inlined_graph)


def test_transforms_second_derivatives_and_checkpoints(calls):
    """What the library has no code for runs in plain operators; checkpoints and copies run it twice."""
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
    """As by `nn.ReLU(inplace=True)` in a folded network, where no batch norm comes between."""
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


def test_operator_checks():
    """PyTorch's own checks of schema, fake tensors and autograd registration."""
    layer, x = layer_of(8, 16), torch.randn(2, 8, 9, 9, requires_grad=True)
    weight, bias, mixing = tensors_of(layer, x)
    pe, alpha = torch.randn(9, 9, 4), torch.randn(1)
    for keep in (0, 2):
        arguments = (x, weight, bias, pe, None, mixing[2], alpha, None, 4, 7, 1, 1, keep)
        tests = ("test_schema", "test_autograd_registration", "test_faketensor")
        torch.library.opcheck(torch.ops.acmix_zoo.acmix, arguments, test_utils=tests)


def test_flops_are_those_of_the_definition():
    """Two for each multiply-accumulate of the layer's definition; the gradient has twice as many. With four
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


def test_a_buffer_that_moves_while_training():
    """An optimiser step takes effect at once: nothing that was packed is kept between calls."""
    layer, x = trained(layer_of(8, 16)), torch.randn(2, 8, 9, 9)
    before = layer(x)
    nn.utils.vector_to_parameters(nn.utils.parameters_to_vector(layer.parameters()) * 1.1, layer.parameters())
    after = layer(x)
    with use_backend("tiles"):
        expected = layer(x)
    assert not torch.allclose(before, after) and torch.allclose(after, expected, atol=1e-4)
