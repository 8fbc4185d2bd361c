"""The Triton kernels against the formula of the paper, as an operator, and when they are used.

Without a GPU, Triton interprets them, which takes long. Feature maps are therefore as small as possible.
"""

from __future__ import annotations

import os
import subprocess
import sys
import warnings
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from support.gradients import assert_all_close, function_gradients, layer_gradients
from torch import Tensor
from torch._dynamo.backends.registry import lookup_backend
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils.flop_counter import FlopCounterMode

from acmix_zoo import ACmix2d
from acmix_zoo.ops import explain_plan, use_backend
from acmix_zoo.ops.backends.triton import attention
from acmix_zoo.ops.dispatch import plan_attention
from acmix_zoo.ops.local_attention import local_attention, local_attention_reference
from acmix_zoo.ops.position_encoding import position_encoding
from acmix_zoo.ops.sliding_window import SlidingWindow

pytest.importorskip("triton", reason="PyTorch's builds for GPUs contain Triton")
WINDOW = SlidingWindow(3)


@pytest.fixture
def fresh() -> Iterator[None]:
    """Forget whether the kernels are usable, before and after the test."""
    attention._can_run.cache_clear()
    yield
    attention._can_run.cache_clear()


@pytest.fixture(autouse=True)
def skip_without_kernels(request: pytest.FixtureRequest) -> None:
    """Where there is a GPU, Triton compiles its kernels, which cannot read the memory of the CPU."""
    if "device" in request.fixturenames and not attention.is_usable(request.getfixturevalue("device")):
        pytest.skip("Triton does not run on this device")


def inputs(h: int, w: int, dtype: torch.dtype, device: str, d: int = 16) -> list[Tensor]:
    """Return q, k, v (2, h, w, 2, d) as views of projections, as a layer has them, and positions (h, w, d)."""
    projections = torch.randn(2, h, w, d, 6, dtype=dtype, device=device)
    pe = position_encoding(torch.randn(d, 2, device=device), h, w)
    return [*(part.transpose(3, 4) for part in projections.split(2, 4)), pe.double() if dtype == torch.float64 else pe]


@pytest.mark.parametrize(
    ("h", "w", "window"),
    [
        pytest.param(4, 4, SlidingWindow(7), marks=pytest.mark.slow),
        (9, 5, SlidingWindow(3)),
        (6, 5, SlidingWindow(3, stride=2)),
        (7, 5, SlidingWindow(3, stride=3, dilation=2)),
        pytest.param(5, 7, SlidingWindow(5, dilation=2), marks=pytest.mark.slow),
        (4, 6, SlidingWindow(1, stride=3)),
    ],
    ids=str,
)
def test_any_window(h: int, w: int, window: SlidingWindow, device: str) -> None:
    tensors = inputs(h, w, torch.float64, device, 3)

    def triton(q: Tensor, *others: Tensor) -> Tensor:
        return attention.triton_attention(q[:, :: window.stride, :: window.stride], *others, window)

    expected = function_gradients(lambda *t: local_attention_reference(*t, window), tensors)
    assert_all_close(function_gradients(triton, tensors), expected)


@pytest.mark.parametrize("d", [1, 16, 40, 72])
def test_any_head_width(d: int, device: str) -> None:
    tensors = inputs(2, 3, torch.float64, device, d)
    found = function_gradients(lambda *t: attention.triton_attention(*t, WINDOW), tensors)
    assert_all_close(found, function_gradients(lambda *t: local_attention_reference(*t, WINDOW), tensors))


@pytest.mark.parametrize(("dtype", "stride", "spread"), [(torch.bfloat16, 1, 8.0), (torch.float16, 2, 1.0)])
def test_half_precision_only_rounds_inputs_and_results(
    dtype: torch.dtype, stride: int, spread: float, device: str
) -> None:
    """Logits, positions and sums are in float32."""
    q, k, v, pe = inputs(8, 5, dtype, device)
    window, pe = SlidingWindow(7, stride), pe * spread
    exact = local_attention_reference(*(t.double() for t in (q, k, v, pe)), window)
    with use_backend("triton"):
        found = local_attention(q, k, v, pe, window)
    assert found.dtype == dtype
    assert (found.double() - exact).norm() <= torch.finfo(dtype).eps / 2 * exact.norm()


def test_gradients_in_half_precision(device: str) -> None:
    tensors = inputs(5, 4, torch.bfloat16, device)
    found = function_gradients(lambda *t: attention.triton_attention(*t, WINDOW), tensors)
    exact = function_gradients(lambda *t: local_attention_reference(*t, WINDOW), [t.double() for t in tensors])
    for a, e in zip(found, exact, strict=True):
        assert (a.double() - e).norm() <= 0.01 * e.norm()


def test_not_a_number_stays_in_the_windows_that_contain_it(device: str) -> None:
    tensors = inputs(9, 9, torch.float32, device)
    tensors[1][0, 4, 4] = float("nan")
    tensors[2][1, 4, 4] = float("inf")
    found = attention.triton_attention(*tensors, WINDOW)
    expected = local_attention_reference(*tensors, WINDOW)
    assert torch.equal(found.isnan(), expected.isnan()) and torch.equal(found.isinf(), expected.isinf())
    assert found.isnan().any(-1).any(-1).sum() == 9 and found.isinf().any(-1).any(-1).sum() == 9


@pytest.mark.slow
def test_the_operators_pass_opcheck(device: str) -> None:
    tensors = [t.detach().requires_grad_() for t in inputs(5, 4, torch.float32, device)]
    torch.library.opcheck(torch.ops.acmix_zoo.local_attention, (*tensors, *WINDOW))
    detached = [t.detach() for t in tensors]
    out, lse = torch.ops.acmix_zoo.local_attention(*detached, *WINDOW)
    arguments = (torch.randn_like(out), out, lse, *detached, *WINDOW)
    torch.library.opcheck(torch.ops.acmix_zoo.local_attention_backward, arguments)


def test_second_derivatives(device: str) -> None:
    """They come from plain operators."""
    tensors = inputs(4, 3, torch.float64, device, 2)

    def gradient_of_q(f: Callable[..., Tensor], *t: Tensor) -> Tensor:
        return torch.autograd.grad(f(*t, WINDOW).square().sum(), t[0], create_graph=True)[0]

    expected = function_gradients(partial(gradient_of_q, local_attention_reference), tensors)
    with use_backend("triton"):
        assert_all_close(function_gradients(partial(gradient_of_q, local_attention), tensors), expected)


def test_a_compiled_graph_contains_the_operator(device: str) -> None:
    tensors = inputs(3, 4, torch.float32, device)
    operators: list[str] = []

    def backend(graph: torch.fx.GraphModule, examples: list[Tensor]) -> Callable[..., Any]:
        operators.extend(str(node.target) for node in graph.graph.nodes if node.op == "call_function")
        return lookup_backend("aot_eager")(graph, examples)

    with use_backend("triton"):
        torch.compiler.reset()
        compiled = torch.compile(local_attention, backend=backend, fullgraph=True)
        found = function_gradients(lambda *t: compiled(*t, WINDOW), tensors)
        with FlopCounterMode(display=False) as counter:
            local_attention(*tensors, WINDOW)
    assert_all_close(found, function_gradients(lambda *t: local_attention_reference(*t, WINDOW), tensors), 1e-5)
    assert sum("local_attention" in name for name in operators) == 1 and not any("zeros" in name for name in operators)
    assert counter.get_total_flops() == 2 * 2 * tensors[0].numel() * 9


def test_a_layer_with_a_graph_of_its_own(device: str) -> None:
    """Output and gradients of `ACmix2d` equal those of the reference."""
    layer = ACmix2d(4, 8, kernel_att=3).double().to(device)
    x = torch.randn(1, 4, 3, 4, dtype=torch.float64, device=device)
    results = []
    for backend in ("triton", "reference"):
        with use_backend(backend):
            results.append(layer_gradients(layer, x))
    assert_all_close(*results)


def test_kernels_that_fail_are_not_used_in_compiled_graphs_either(
    device: str, fresh: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also if a tracer or fake tensors make the first call."""

    def fail(device: torch.device) -> None:
        raise RuntimeError("Failed to find C compiler.")

    tensors = inputs(20, 17, torch.float32, device)
    monkeypatch.setattr(attention, "_run_once", fail)
    torch.compiler.reset()
    with use_backend("triton"), pytest.warns(UserWarning, match="slower backend"):
        with FakeTensorMode():
            assert not attention.is_usable(device)
        compiled = torch.compile(local_attention, backend="aot_eager", fullgraph=True)
        found = compiled(*tensors, WINDOW)
    assert_all_close([found], [local_attention_reference(*tensors, WINDOW)], 1e-5)


class TestChoice:
    def test_on_a_gpu(self) -> None:
        """Even without a GPU, for plans and fake tensors."""
        assert plan_attention(17, 16, SlidingWindow(7), "cuda").backend == "triton"
        assert plan_attention(16, 16, SlidingWindow(7), "cuda").backend == "global"
        reason = "attention: triton backend, because the map has more than 256 positions, on a GPU"
        assert reason in explain_plan((8, 64, 56, 56), 64, device="cuda")
        assert plan_attention(56, 56, SlidingWindow(7), "cpu").backend == "tiles"

    def test_maps_that_are_too_small_to_reflect_once(self) -> None:
        assert plan_attention(4, 80, SlidingWindow(7), "cuda").backend == "triton"
        assert plan_attention(3, 90, SlidingWindow(7), "cuda").backend == "tiles"
        assert plan_attention(6, 60, SlidingWindow(7, dilation=2), "cuda").backend == "tiles"

    def test_requested(self, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(attention, "_run_once", lambda device: None)
        with use_backend("triton"):
            assert plan_attention(20, 20, SlidingWindow(7), "cpu").backend == "triton"
        with use_backend("python"):
            assert plan_attention(20, 20, SlidingWindow(7), "cuda").backend == "tiles"

    def test_kernels_that_cannot_be_compiled(self, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
        """One warning, and another backend."""

        def fail(*_: object) -> None:
            raise RuntimeError("Failed to find C compiler.\nSet CC.")

        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(attention, "triton_attention", fail)
        with (
            use_backend("triton"),
            pytest.warns(UserWarning, match="slower backend: Failed to find C compiler"),
        ):
            assert plan_attention(20, 20, SlidingWindow(7)).backend == "tiles"
        with use_backend("triton"), warnings.catch_warnings():
            warnings.simplefilter("error")
            assert plan_attention(20, 20, SlidingWindow(7)).backend == "tiles"

    def test_no_triton(self, fresh: None, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("TRITON_INTERPRET", "1")
        monkeypatch.setattr(attention, "find_spec", lambda name: None)
        with use_backend("triton"):
            assert plan_attention(20, 20, SlidingWindow(7), "cpu").backend == "tiles"


@pytest.mark.slow
@pytest.mark.parametrize("capability", ["80", "90"])
def test_the_kernels_compile_for_a_gpu_and_fit_into_its_registers(capability: str) -> None:
    """No GPU is needed. The kernels would be slow if numbers went from registers to memory and back."""
    script = Path(__file__).parents[2] / "support/compile_triton.py"
    env = {**os.environ, "TRITON_INTERPRET": "0"}
    command = [sys.executable, script, capability, "5", "16", "32", "64", "128"]
    done = subprocess.run(command, check=True, capture_output=True, text=True, env=env)
    assert [line.split()[2] for line in done.stdout.splitlines()] == ["0"] * 15, done.stdout
