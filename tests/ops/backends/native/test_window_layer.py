"""WindowACmix and ReducedACmix in the native library, and the cases that run in other backends."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from support.gradients import OneInput
from support.native_layers import problem
from torch import Tensor, nn
from torch._dynamo.testing import CompileCounterWithBackend
from torch.func import functional_call, grad, vmap
from torch.utils.checkpoint import checkpoint
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo.layers import ReducedACmix, WindowACmix
from acmix_zoo.layers.argument_checks import Paths
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import window as native
from acmix_zoo.ops.backends.native.library import library
from acmix_zoo.ops.window_paths import (
    WindowTensors,
    runs_native,
    window_paths,
    window_paths_plain,
)

if library() is None:
    pytest.skip("no native library and no compiler", allow_module_level=True)


def shifted_layer(paths: str = "both", seed: int = 0, **options: Any) -> WindowACmix:
    """Return a layer with shifted windows whose parameters all differ from their initial values."""
    torch.manual_seed(seed)
    layer = WindowACmix(24, 3, (4, 5), (2, 2), paths=paths, **options)  # type: ignore[arg-type]
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def with_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    return [out.detach(), *torch.autograd.grad(out.sin().sum(), [x, *layer.parameters()])]


def assert_close(actual: Sequence[Tensor], expected: Sequence[Tensor], tolerance: float = 1e-5) -> None:
    for i, (a, e) in enumerate(zip(actual, expected, strict=True)):
        assert float((a - e).abs().max()) <= tolerance * max(float(e.abs().max()), 1.0), i


@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
@pytest.mark.parametrize("conv_before_shift", [False, True])
@pytest.mark.parametrize("size", [(8, 10), (7, 13), (3, 11), (4, 5)], ids=str)
def test_the_layer_equals_the_python_backend(paths, conv_before_shift, size, window_calls):
    """Feature maps of whole windows, padded ones, and ones with a single window along one side or both."""
    layer = shifted_layer(paths, conv_before_shift=conv_before_shift)
    x = torch.randn(2, *size, 24)
    with use_backend("reference"):
        expected = with_gradients(copy.deepcopy(layer).double(), x.double())
    assert not window_calls
    assert_close(with_gradients(layer, x), expected, 2e-5)
    assert window_calls == ["forward", "backward"]


def test_the_deployed_layer(window_calls: list[str]) -> None:
    layer, x = shifted_layer(), torch.randn(2, 8, 10, 24)
    with torch.no_grad():
        expected = layer(x)
        layer.deploy()
        assert_close([layer(x)], [expected])
    assert window_calls == ["forward", "forward"]


@pytest.mark.parametrize("frozen", ["x", "qkv", "relative", "shift_conv", "proj", "beta"])
def test_frozen_parts(frozen: str, window_calls: list[str]) -> None:
    layer, x = shifted_layer(), torch.randn(2, 8, 10, 24, requires_grad=frozen != "x")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    learned = [p for p in (x, *layer.parameters()) if p.requires_grad]
    actual = torch.autograd.grad(layer(x).sin().sum(), learned)
    assert window_calls == ["forward", "backward"]
    with use_backend("tiles"):
        assert_close(actual, torch.autograd.grad(layer(x).sin().sum(), learned))


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
@torch.no_grad()
def test_values_that_are_not_finite(value: float, paths: str) -> None:
    """Outputs are NaN or infinite exactly where those of the definition are."""
    (projections, *weights), geometry = problem(2, (2, 3), (5, 6), 3, 8, shift=(2, 3), paths=paths)
    assert projections is not None
    projections[0, 3, 5, 6] = value
    doubled = WindowTensors(*(None if t is None else t.double() for t in weights))
    expected = window_paths_plain(projections.double(), doubled, geometry)
    for a, e in zip(window_paths(projections, WindowTensors(*weights), geometry), expected, strict=True):
        if e is not None:
            assert torch.equal(a.isfinite(), e.isfinite()) and not e.isfinite().all()
            assert_close([a[e.isfinite()]], [e[e.isfinite()]])


@pytest.mark.parametrize(
    "view", [lambda x: x.transpose(1, 2), lambda x: x[:, ::2, 1:], lambda x: x[:1].expand(3, -1, -1, -1)]
)
def test_memory_layouts(view: Any, window_calls: list[str]) -> None:
    layer, x = shifted_layer(), view(torch.randn(2, 8, 9, 24))
    assert_close(with_gradients(layer, x), with_gradients(layer, x.clone(memory_format=torch.contiguous_format)), 0)
    assert window_calls == ["forward", "backward"] * 2


def test_few_images_for_many_threads(window_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The backward pass shares images among threads; plain operators are faster for one image and many threads."""
    layer, x = shifted_layer(), torch.randn(1, 8, 10, 24)
    expected = with_gradients(layer, x)
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_close(with_gradients(layer, x), expected)
    assert window_calls == ["forward", "backward", "forward"]


class Tagged(torch.Tensor):
    """A tensor subclass of a user."""


@torch.no_grad()
def test_unsupported_cases_run_in_other_backends(window_calls: list[str]) -> None:
    """Other dtypes, tensor subclasses, autocast, hooked submodules and forced backends."""
    layer, x = shifted_layer(), torch.randn(1, 8, 10, 24)
    assert native.unsupported_reason([x, None]) is None
    assert "float32; this is float64" in (native.unsupported_reason([x.double()]) or "")
    assert "CPU only; this is meta" in (native.unsupported_reason([x.to("meta")]) or "")
    copy.deepcopy(layer).double()(x.double())
    layer(x.as_subclass(Tagged))
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16
    with use_backend("tiles"):
        layer(x)
    hooked = copy.deepcopy(layer)
    hooked.shift_conv.register_forward_hook(lambda *_: None)
    hooked(x)
    assert not window_calls
    hooked = copy.deepcopy(layer)
    seen: list[int] = []
    hooked.proj.register_forward_hook(lambda *_: seen.append(1))
    assert_close([hooked(x)], [layer(x)])
    assert window_calls == ["forward"] * 2 and seen


@pytest.mark.parametrize("shape", [(1, 8, 0, 24), (1, 0, 8, 24), (2, 0, 0, 24)])
def test_empty_feature_maps_do_not_run_natively(shape: tuple[int, ...]) -> None:
    """The kernel would divide by their width, which ends the process."""
    weight = torch.empty(24, 24)
    assert not runs_native(torch.empty(shape), weight) and runs_native(torch.empty(0, 8, 8, 24), weight)
    layer = shifted_layer()
    for run in (layer, torch.compile(layer, backend="aot_eager")):
        with pytest.raises(RuntimeError, match=r"0 elements|padded input size"):
            run(torch.empty(shape))


@pytest.mark.parametrize("bias", [True, False])
def test_a_projection_without_bias(bias: bool) -> None:
    layer = WindowACmix(24, 3, (4, 5))
    layer.proj = nn.Linear(24, 24, bias=bias)
    x = torch.randn(1, 8, 10, 24)
    out = layer(x)
    with use_backend("python"):
        assert torch.allclose(out, layer(x), atol=1e-5)


def test_traces_do_not_contain_the_operator(window_calls: list[str]) -> None:
    layer, x = shifted_layer(), torch.randn(1, 8, 10, 24)
    traced = torch.jit.trace(layer, x, check_trace=False)  # type: ignore[no-untyped-call]
    assert not window_calls and "window_paths" not in str(traced.inlined_graph)
    assert_close([traced(x).detach()], [layer(x).detach()])


@pytest.mark.slow
def test_exported_graphs_do_not_contain_the_operator(window_calls: list[str]) -> None:
    layer, x = shifted_layer(), torch.randn(1, 8, 10, 24)
    exported = torch.export.export(layer, (x,))
    assert not window_calls and "window_paths" not in exported.graph_module.code
    assert_close([exported.module()(x).detach()], [layer(x).detach()])


def test_compiled_graphs_contain_the_operator(window_calls: list[str]) -> None:
    """There is a graph for the first size, and another one for all others, with and without padding."""
    layer, counter = shifted_layer(), CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(layer, fullgraph=True, backend=counter)
    for size in ((2, 9, 11), (3, 16, 10), (4, 8, 15), (5, 7, 13)):
        x = torch.randn(*size, 24)
        assert_close(with_gradients(compiled, x), with_gradients(layer, x))
    assert window_calls == ["forward", "backward"] * 8
    assert [sum("window_paths" in str(node.target) for node in g.graph.nodes) for g in counter.graphs] == [1, 1]


def test_a_compiled_layer_of_pvt(window_calls: list[str]) -> None:
    layer, x = OneInput(ReducedACmix(30, 3, 2), (7, 5)), torch.randn(2, 35, 30)
    assert_close(with_gradients(torch.compile(layer, fullgraph=True, backend="aot_eager"), x), with_gradients(layer, x))
    assert window_calls == ["forward", "backward"] * 2


def test_a_compiled_graph_that_cannot_run_natively(window_calls: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """The operator then computes the same with PyTorch: under `use_backend`, and for one image and many threads."""
    layer, x = shifted_layer(), torch.randn(1, 8, 10, 24)
    compiled = torch.compile(layer, fullgraph=True, backend="aot_eager")
    expected = with_gradients(compiled, x)
    with use_backend("python"):
        assert_close(with_gradients(compiled, x), expected)
    assert window_calls == ["forward", "backward"]
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert_close(with_gradients(compiled, x), expected)
    assert window_calls == ["forward", "backward", "forward"]


def test_plain_gradients_under_a_dispatch_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    """They are computed in another thread there, and must not have a graph either."""
    (projections, *weights), geometry = problem(1, (2, 2), (4, 5), 3, 8, shift=(2, 2))
    assert projections is not None
    leaf = projections.requires_grad_()

    def gradient() -> Tensor:
        found = torch.ops.acmix_zoo.window_paths(leaf, *weights, *geometry)
        return torch.autograd.grad([t.sin().sum() for t in found], leaf)[0]

    expected = gradient()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    with FlopCounterMode(display=False):
        found = gradient()
    assert_close([found], [expected])
    assert not found.requires_grad


def test_transforms_second_derivatives_and_checkpoints(window_calls: list[str]) -> None:
    """Transforms and second derivatives run in plain operators. A checkpoint runs the library twice."""
    layer, x = shifted_layer(), torch.randn(3, 7, 6, 24)
    parameters = dict(layer.named_parameters())

    def loss(parameters: dict[str, Tensor], x: Tensor) -> Tensor:
        return functional_call(layer, parameters, (x,)).sin().sum()

    expected = torch.autograd.grad(loss(parameters, x), list(parameters.values()))
    assert window_calls == ["forward", "backward"]
    assert_close(list(grad(loss)(parameters, x).values()), expected)
    each = vmap(grad(loss), in_dims=(None, 0))(parameters, x.unsqueeze(1))
    assert_close([each[name].sum(0) for name in parameters], expected)
    assert window_calls == ["forward", "backward"]
    again = torch.autograd.grad(checkpoint(loss, parameters, x, use_reentrant=False), list(parameters.values()))
    assert_close(again, expected, 0)

    def second() -> Tensor:
        first = torch.autograd.grad(loss(parameters, x), layer.qkv.weight, create_graph=True)[0]
        return torch.autograd.grad(first.square().sum(), layer.qkv.weight)[0]

    actual = second()
    with use_backend("reference"):
        assert_close([actual], [second()], 1e-4)


@pytest.mark.parametrize("heads", [1, 5])
@pytest.mark.parametrize(("reduction", "prefix"), [(1, 1), (1, 0), (3, 0)])
@pytest.mark.parametrize("paths", ["both", "convolution"])
def test_the_convolution_of_pvts_layer(
    heads: int, reduction: int, prefix: int, paths: Paths, window_calls: list[str]
) -> None:
    torch.manual_seed(0)
    layer = ReducedACmix(30, heads, reduction, paths=paths)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    x, size = torch.randn(2, prefix + 7 * 5, 30), (7, 5)

    with use_backend("reference"):
        expected = with_gradients(OneInput(copy.deepcopy(layer), size).double(), x.double())
    assert not window_calls
    assert_close(with_gradients(OneInput(layer, size), x), expected, 2e-5)
    assert window_calls == ["forward", "backward"]


def test_flops_are_those_of_the_definition() -> None:
    """Two for each multiply-accumulate of the definition; the gradient has twice as many."""
    layer, x = shifted_layer(), torch.randn(2, 8, 10, 24)
    tensors, geometry = problem(2, (2, 2), (4, 5), 3, 8, shift=(2, 2))
    assert tensors[0] is not None
    leaf = tensors[0].requires_grad_()
    with FlopCounterMode(display=False) as counter:
        found = torch.ops.acmix_zoo.window_paths(leaf, *tensors[1:], *geometry)
    assert counter.get_total_flops() == 2 * layer.stage_macs(x).second
    with FlopCounterMode(display=False) as counter:
        torch.autograd.grad([t.sum() for t in found], leaf)
    assert counter.get_total_flops() == 4 * layer.stage_macs(x).second


@pytest.mark.parametrize(
    ("window", "shift"),
    [
        ((4, 4), (-2, -2)),
        ((4, 4), (2, 4)),
        ((0, 4), (0, 0)),
        ((4, 4), (2,)),
        (4, (0, 0)),
        ((4.0, 4.0), (0, 0)),
        ((4, 4, 4), (2, 2, 2)),
    ],
)
def test_impossible_windows_are_rejected(window: Any, shift: Any) -> None:
    """A negative shift would write outside the result."""
    with pytest.raises(ValueError, match="shifts from 0 to its side minus 1"):
        WindowACmix(8, 2, window, shift)
