"""Layers and networks of every family on every device: dtypes, autocast, memory format, determinism, compile, memory.

The operators have such tests of their own beside their references: test_ops.py, test_acmix_op.py,
test_aggregation_windows.py, test_padded_attention.py; CUDA graphs are in test_cuda_graphs.py.
"""

from __future__ import annotations

import copy
from collections.abc import Iterator

import pytest
import torch
from torch import Tensor, nn

from acmix_zoo import ACmix2d, create_model
from acmix_zoo.analysis.contestants import Case
from acmix_zoo.analysis.passes import Pass, gpu_peak
from acmix_zoo.layers.reduced_acmix import ReducedACmix
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM
from acmix_zoo.layers.window_acmix import WindowACmix

NETWORKS = ("acmix_resnet_pico", "acmix_swin_pico", "acmix_san_pico", "acmix_pvt_pico")


class Reduced(nn.Module):
    """ReducedACmix on a map (B, H, W, dim), as the other layers take one."""

    def __init__(self, layer: ReducedACmix) -> None:
        super().__init__()
        self.layer = layer

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x.flatten(1, 2), x.shape[1:3]).unflatten(1, x.shape[1:3])


# A layer and the shape of its input. Head widths 8, 5 (padded on a GPU), 8 and 5.
LAYERS = {
    "acmix2d": (lambda: ACmix2d(16, 32), (2, 16, 18, 21)),
    "acmix2d, heads of 5": (lambda: ACmix2d(16, 20), (2, 16, 14, 9)),
    "window": (lambda: WindowACmix(24, 3, (4, 4), (2, 2)), (2, 9, 12, 24)),
    "window, heads of 5": (lambda: WindowACmix(15, 3, (4, 4)), (2, 8, 8, 15)),
    "reduced": (lambda: Reduced(ReducedACmix(20, 4, 2)), (2, 8, 10, 20)),
    "pairwise": (lambda: PairwiseSAM(64, 7, paths="both"), (2, 64, 9, 10)),
    "patchwise": (lambda: PatchwiseSAM(64, 3, paths="both"), (2, 64, 9, 10)),
}


def randomised(layer: nn.Module) -> nn.Module:
    """Every parameter away from its start, where many layers compute something simpler."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.2)
    return layer.eval()


def with_gradients(layer: nn.Module, x: Tensor) -> list[Tensor]:
    """The output, the gradient of the input and that of each parameter, in float64 on the CPU."""
    x = x.detach().requires_grad_()
    out = layer(x)
    wave = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)
    return [t.double().cpu() for t in (out.detach(), *torch.autograd.grad(out, [x, *layer.parameters()], wave))]


@pytest.fixture
def deterministic() -> Iterator[None]:
    """PyTorch refuses every operator that is not deterministic."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


def relative_errors(found: list[Tensor], exact: list[Tensor]) -> Tensor:
    """|found − exact| / |exact| of each tensor; those that vanish (what softmax or batch norm cancels) are left out."""
    largest = max(float(e.norm()) for e in exact)
    return torch.stack(
        [(f - e).norm() / e.norm() for f, e in zip(found, exact, strict=True) if e.norm() > 1e-9 * largest]
    )


@pytest.mark.gpu
@pytest.mark.parametrize("name", LAYERS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
def test_layer_is_as_exact_as_on_a_cpu(name: str, dtype: torch.dtype) -> None:
    """Both against float64. A bound for each tensor would be one for its sums' cancellation, which the CPU's error has
    in it; the two differ by the order of the sums, so up to four times its error is taken for the same."""
    make, shape = LAYERS[name]
    exact = randomised(make().double())
    x = torch.randn(shape, dtype=torch.float64)
    expected = with_gradients(exact, x)
    here, there = (
        relative_errors(with_gradients(copy.deepcopy(exact).to(device, dtype), x.to(device, dtype)), expected)
        for device in ("cuda", "cpu")
    )
    assert here.square().mean() <= 16 * there.square().mean()
    assert here.median() <= 4 * there.median()


@pytest.mark.parametrize("name", NETWORKS)
def test_memory_format_changes_nothing(name: str, device: str) -> None:
    model = create_model(name, in_chans=3).to(device).eval()
    x = torch.randn(2, 3, 32, 32, device=device)
    expected = model(x)
    out = model.to(memory_format=torch.channels_last)(x.contiguous(memory_format=torch.channels_last))
    torch.testing.assert_close(out, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", NETWORKS)
def test_autocast_is_no_worse_than_converting_everything(name: str, device: str) -> None:
    """What autocast leaves in float32 can only help; twice the other's error, since the two round in other places."""
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
def test_training_repeats_to_the_bit(name: str, device: str, deterministic: None) -> None:
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
def test_compiled_training_is_eager_training(name: str, deterministic: None) -> None:
    """On a GPU the layers are traced operator by operator; on a CPU each is one operator of the compiled graph."""
    torch.compiler.reset()
    model = create_model(name, in_chans=3).cuda().eval()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    expected = with_gradients(model, x)
    for a, e in zip(with_gradients(torch.compile(model), x), expected, strict=True):
        assert (a - e).norm() <= 1e-4 * max(e.norm(), 1e-2)


class Projection(nn.Linear):
    """Not `nn.Linear` itself, so that ACmix2d calls it and goes on operator by operator on every device."""


@pytest.mark.parametrize("size", [14, 20])  # global attention, tiles
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("train", [False, True])
def test_layer_traced_operator_by_operator(size: int, dtype: torch.dtype, train: bool, device: str) -> None:
    """What is compiled on a GPU, against eager; without inductor, so that it is the same arithmetic."""
    torch.compiler.reset()
    layer = randomised(ACmix2d(8, 16)).to(device, dtype)
    layer.qkv.__class__ = Projection
    x = torch.randn(2, 8, size, size, device=device, dtype=dtype)
    compiled = torch.compile(layer, backend="aot_eager", fullgraph=True)
    with torch.set_grad_enabled(train):
        found, expected = ((with_gradients(f, x) if train else [f(x).double().cpu()]) for f in (compiled, layer))
    # Compiled tiles are 4×8, so sums are in another order. A gradient far smaller than the others (of the positions) is
    # what is left of sums that cancel, and has the error of their terms.
    largest = max(float(e.norm()) for e in expected)
    for a, e in zip(found, expected, strict=True):
        assert (a - e).norm() <= 4 * torch.finfo(dtype).eps * max(float(e.norm()), 0.05 * largest)


@pytest.mark.gpu
@pytest.mark.parametrize("name", NETWORKS)
def test_a_step_does_not_wait_for_the_gpu(name: str) -> None:
    """No operator of the forward or backward pass makes the host wait for a result."""
    model = create_model(name, in_chans=3).cuda().train()
    x = torch.randn(4, 3, 32, 32, device="cuda")
    model(x).square().sum().backward()  # masks and indices are made once
    torch.cuda.set_sync_debug_mode("error")
    try:
        model(x).square().sum().backward()
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.gpu
@pytest.mark.parametrize("train", [False, True])
def test_tiles_take_less_memory_than_the_reference(train: bool) -> None:
    """The reference unfolds k and v into 49 copies each. Tiles of 4×7 gather 4.6 keys per query, ten times fewer; the
    projections, logits and results that both have leave at least a factor of three."""
    fast, reference = (
        gpu_peak(Pass(Case(f"acmix2d:64x56{form}", 8, train=train, device="cuda"))) for form in ("", "@reference")
    )
    assert 3 * fast < reference
