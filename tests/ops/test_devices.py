"""Networks of every family on every device: autocast, memory format, determinism, compilation, host waits, memory.

The operators are compared with their references on every device in their own test files. CUDA graphs are in
test_cuda_graphs.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from support.gradients import layer_gradients, randomize
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from acmix_zoo import ACmix2d, create_model
from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.memory import gpu_peak
from acmix_zoo.bench.passes import Pass
from acmix_zoo.ops.backends.global_attention import multiplicity_mask
from acmix_zoo.ops.backends.tile_attention import band_mask
from acmix_zoo.ops.position_encoding import coordinates
from acmix_zoo.ops.sliding_window import SlidingWindow

NETWORKS = ("acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico")


def exact_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """Return the output, the gradient of the input and that of each parameter, in float64 on the CPU."""
    return [t.double().cpu() for t in layer_gradients(layer, x)]


class NoFloat64(TorchDispatchMode):
    """Raises when an operator returns float64."""

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        assert not any(isinstance(t, Tensor) and t.dtype == torch.float64 for t in tree_leaves(out)), func
        return out


@pytest.fixture
def deterministic() -> Iterator[None]:
    """Make PyTorch refuse every operator that is not deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_masks_need_no_float64(dtype: torch.dtype, device: str) -> None:
    """Apple's GPUs have no float64. A float32 logarithm may be off by one unit in the last place. The rest is exact."""
    kind = {"dtype": dtype, "device": torch.device(device)}
    with NoFloat64():
        mask = multiplicity_mask(5, 4, 5, 4, SlidingWindow(7), **kind)
        band_mask(3, 4, SlidingWindow(7), **kind)
        coordinates(5, 4, **kind)
    exact = multiplicity_mask(5, 4, 5, 4, SlidingWindow(7), dtype=torch.float64, device=torch.device("cpu")).to(dtype)
    eps = torch.finfo(torch.float32).eps if dtype == torch.float32 else 0
    torch.testing.assert_close(mask.cpu(), exact, rtol=eps, atol=0)


@pytest.mark.parametrize("name", NETWORKS)
def test_networks_need_no_float64(name: str, device: str) -> None:
    model = create_model(name, in_chans=3).to(device).train()
    x = torch.randn(2, 3, 40, 40, device=device)
    with NoFloat64():
        model(x).square().sum().backward()


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_format_changes_no_result(name: str, device: str) -> None:
    model = create_model(name, in_chans=3).to(device).eval()
    x = torch.randn(2, 3, 32, 32, device=device)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_is_no_worse_than_converting_everything(name: str, device: str) -> None:
    """Autocast keeps more in float32. Both round in different places, so its error may be up to twice as large."""
    model = create_model(name, in_chans=3).to(device).eval()
    x = torch.randn(4, 3, 32, 32, device=device)
    with torch.no_grad():
        expected = model(x).double()
        with torch.autocast(device, torch.bfloat16):
            found = model(x)
        converted = copy.deepcopy(model).bfloat16()(x.bfloat16()).double()
    assert found.dtype == torch.bfloat16
    assert (found.double() - expected).norm() <= 2 * (converted - expected).norm()


@pytest.mark.parametrize("name", NETWORKS)
def test_training_under_autocast(name: str, device: str) -> None:
    """Every parameter gets a finite gradient in float32."""
    model = create_model(name, in_chans=3).to(device).train()
    with torch.autocast(device, torch.bfloat16):
        loss = model(torch.randn(4, 3, 32, 32, device=device)).logsumexp(1).sum()
    loss.backward()
    for key, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.dtype == torch.float32, key
        assert parameter.grad.isfinite().all(), key


@pytest.mark.parametrize("name", NETWORKS)
def test_training_is_bit_identical_when_repeated(name: str, device: str, deterministic: None) -> None:
    model = create_model(name, in_chans=3).to(device).train()
    x = torch.randn(4, 3, 32, 32, device=device)
    steps = []
    for _ in range(2):
        model.zero_grad()
        model(x).square().sum().backward()
        steps.append([p.grad.clone() for p in model.parameters() if p.grad is not None])
    assert all(torch.equal(a, b) for a, b in zip(*steps, strict=True))


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_compiled_training_agrees_with_eager_training(name: str, deterministic: None) -> None:
    """On a GPU the layers are traced operator by operator; on a CPU each is one operator of the compiled graph."""
    torch.compiler.reset()
    model = create_model(name, in_chans=3).cuda().eval()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    expected = exact_gradients(model, x)
    for a, e in zip(exact_gradients(torch.compile(model), x), expected, strict=True):
        assert (a - e).norm() <= 1e-4 * max(e.norm(), 1e-2)


class Projection(nn.Linear):
    """A subclass of `nn.Linear`, so that ACmix2d calls it and runs operator by operator on every device."""


@pytest.mark.parametrize(
    ("size", "dtype", "train"),  # the sizes use global attention and tiles
    [
        (20, torch.float32, True),
        *(
            pytest.param(*case, marks=pytest.mark.slow)
            for case in product((14, 20), (torch.float32, torch.bfloat16), (False, True))
            if case != (20, torch.float32, True)
        ),
    ],
)
def test_layer_traced_operator_by_operator(size: int, dtype: torch.dtype, train: bool, device: str) -> None:
    """The graph that is compiled on a GPU agrees with eager mode. Without inductor, both do the same arithmetic."""
    torch.compiler.reset()
    layer = randomize(ACmix2d(8, 16), 0.2).to(device, dtype)
    layer.qkv.__class__ = Projection
    x = torch.randn(2, 8, size, size, device=device, dtype=dtype)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(train):
        results = [exact_gradients(f, x) if train else [f(x).double().cpu()] for f in (compiled, layer)]
    # Compiled tiles are 4×8, so sums are in another order. The gradient of the positions is far smaller than the
    # others. It is what remains of sums that cancel, and has the error of their terms. So are those of alpha and beta.
    largest = max(float(e.norm()) for e in results[1])
    for a, e in zip(*results, strict=True):
        scale = max(float(e.norm()), largest if e.numel() == 1 else 0.05 * largest)
        assert (a - e).norm() <= 4 * torch.finfo(dtype).eps * scale


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    """No operator of the forward or backward pass makes the host wait for a result."""
    model = create_model(name, in_chans=3).cuda().train()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    model(x).square().sum().backward()  # masks and indices are built once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True])
def test_tiles_take_less_memory_than_the_reference(train: bool) -> None:
    """The peak is at least three times lower.

    The reference unfolds k and v into 49 copies each. Tiles of 4×7 gather 4.6 keys per query, ten times fewer. Both
    also need projections, logits and results.
    """
    fast, reference = (
        gpu_peak(Pass(Candidate(f"acmix2d:64x56{backend}", 8, train=train, device="cuda")))
        for backend in ("", "@reference")
    )
    assert 3 * fast < reference
