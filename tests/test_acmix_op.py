"""The whole layer as one function: cut into chunks or not, kept or made again, forced forms, plans, determinism."""

from __future__ import annotations

import subprocess
import sys
import threading

import pytest
import torch
from torch import nn

from acmix_zoo import ACmix2d
from acmix_zoo.ops import FORMS, explain_plan, local_attention, plan, use_form


def randomised(layer: nn.Module) -> nn.Module:
    """Every parameter away from its start: shifts hide errors in the kernels' order."""
    torch.manual_seed(0)
    for parameter in layer.parameters():
        nn.init.normal_(parameter, std=0.3)
    return layer


def with_gradients(layer: nn.Module, x: torch.Tensor) -> list[torch.Tensor]:
    x = x.detach().requires_grad_()
    out = layer(x)
    wave = torch.linspace(-3, 3, out.numel(), dtype=torch.float64).sin().view(out.shape).to(out)
    grads = torch.autograd.grad(out, [x, *layer.parameters()], wave)
    return [out.detach(), *grads]


def assert_close(actual: list[torch.Tensor], expected: list[torch.Tensor], tolerance: float) -> None:
    for a, e in zip(actual, expected, strict=True):
        assert a.shape == e.shape and a.dtype == e.dtype
        assert (a - e).abs().max() <= tolerance * max(float(e.abs().max()), 1e-2)


@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last])
@pytest.mark.parametrize("size", [(17, 19), (9, 5), (1, 1)])
@pytest.mark.parametrize(
    "options",
    [{}, {"stride": 2}, {"heads": 8}, {"paths": "attention"}, {"paths": "convolution"}, {"dilation": 2}],
    ids=str,
)
def test_layer_equals_the_reference_however_it_is_cut(options, size, layout, device, monkeypatch):
    layer = randomised(ACmix2d(6, 16, **options).double().to(device))
    x = torch.randn(5, 6, *size, dtype=torch.float64, device=device).contiguous(memory_format=layout)
    with use_form("reference"):
        expected = with_gradients(layer, x)
    assert_close(with_gradients(layer, x), expected, 1e-10)  # the whole batch
    monkeypatch.setattr(plan, "_CHUNK_BYTES", 1)  # one image at a time, projected again for the gradient
    assert_close(with_gradients(layer, x), expected, 1e-10)
    monkeypatch.setattr(plan, "_KEEP_FROM", 1)  # the same, projections kept
    out = with_gradients(layer, x)
    assert_close(out, expected, 1e-10)
    assert layer(x).is_contiguous(memory_format=layout)
    with torch.no_grad():
        assert_close([layer(x)], expected[:1], 1e-10)


@pytest.mark.parametrize("frozen", ["x", "qkv", "alpha", "shift_conv", "position_weight"])
def test_frozen_parts_when_cut(frozen, monkeypatch):
    """What needs no gradient gets none, and the rest is right."""
    monkeypatch.setattr(plan, "_CHUNK_BYTES", 1)
    layer = randomised(ACmix2d(4, 8).double())
    x = torch.randn(3, 4, 17, 18, dtype=torch.float64, requires_grad=frozen != "x")
    for name, parameter in layer.named_parameters():
        parameter.requires_grad_(not name.startswith(frozen))
    learned = [p for p in (x, *layer.parameters()) if p.requires_grad]
    actual = torch.autograd.grad(layer(x).sin().sum(), learned)
    with use_form("reference"):
        expected = torch.autograd.grad(layer(x).sin().sum(), learned)
    assert_close(list(actual), list(expected), 1e-10)


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
def test_every_form_in_every_dtype(form, dtype, device):
    layer = randomised(ACmix2d(4, 8).to(device, dtype))
    x = torch.randn(2, 4, 18, 21, dtype=dtype, device=device)
    exact = layer.double()
    with use_form("reference"):
        expected = with_gradients(exact, x.double())
    with use_form(form):
        actual = with_gradients(layer.to(dtype), x)
    assert all(t.dtype == dtype for t in actual)
    tolerance = {torch.float64: 1e-10, torch.float32: 1e-4, torch.bfloat16: 0.1, torch.float16: 0.02}[dtype]
    for a, e in zip(actual, expected, strict=True):
        assert (a.double() - e).norm() <= tolerance * max(float(e.norm()), 1.0)


def test_training_keeps_the_input_and_nothing_else():
    """At 64×56² and a batch that is cut: no projection, no gathered copy waits for the gradient."""
    kept: dict[int, int] = {}

    def count(tensor: torch.Tensor) -> torch.Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    layer = ACmix2d(64, 64)
    x = torch.randn(4, 64, 56, 56, requires_grad=True)
    with torch.autograd.graph.saved_tensors_hooks(count, lambda x: x):
        layer(x)
    parameters = 4 * sum(p.numel() for p in layer.parameters())
    assert sum(kept.values()) <= x.untyped_storage().nbytes() + 2 * parameters + 4 * 56 * 56 * 16


@pytest.mark.parametrize("size", [7, 14, 30])
def test_backward_is_deterministic(size, device):
    """Bit for bit, with PyTorch refusing every operator that is not."""
    layer = ACmix2d(8, 16, stride=2).to(device)
    x = torch.randn(6, 8, size, size, device=device)
    torch.use_deterministic_algorithms(True)
    try:
        first, second = with_gradients(layer, x), with_gradients(layer, x)
    finally:
        torch.use_deterministic_algorithms(False)
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))


def test_autocast_when_cut(monkeypatch):
    layer = randomised(ACmix2d(4, 8))
    x = torch.randn(3, 4, 18, 18)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        whole = with_gradients(layer, x)
        monkeypatch.setattr(plan, "_CHUNK_BYTES", 1)
        cut = with_gradients(layer, x)
    assert cut[0].dtype == torch.bfloat16 and cut[1].dtype == torch.float32
    for a, e in zip(cut, whole, strict=True):
        assert (a - e).norm() <= 0.03 * max(float(e.norm()), 1.0)


def test_someone_elses_projection_is_called():
    """Adapters replace the Linear, profilers and sharding hook it."""

    class Adapted(nn.Linear):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return super().forward(x) + 1

    layer, x, seen = ACmix2d(4, 8), torch.randn(2, 4, 9, 9), []
    plain = layer(x)
    handle = layer.qkv.register_forward_hook(lambda *_: seen.append(1))
    assert torch.allclose(layer(x), plain, atol=1e-6) and seen
    handle.remove()
    layer.qkv.__class__ = Adapted
    shifted = layer(x)
    layer.qkv.__class__ = nn.Linear
    with torch.no_grad():
        layer.qkv.bias += 1
    assert torch.allclose(layer(x), shifted, atol=1e-6) and not torch.allclose(shifted, plain)


def test_forms_by_name():
    with pytest.raises(ValueError, match="expected one of reference, global, tiles, offset, native, got 'fast'"):
        with use_form("fast"):
            pass
    with use_form("offset"):
        assert "attention: offset: use_form" in explain_plan((1, 64, 56, 56), 64)
        with use_form("global"):
            assert plan.plan_attention(56, 56, 7).form == "global"
        assert plan.plan_attention(56, 56, 7).form == "offset"
    assert plan.plan_attention(56, 56, 7).form == "tiles"


def test_use_form_only_affects_its_own_thread():
    """Forcing a form in one thread used to affect all others."""
    forced, done = threading.Event(), threading.Event()

    def other():
        with use_form("reference"):
            forced.set()
            done.wait(60)

    thread = threading.Thread(target=other)
    thread.start()
    forced.wait(60)
    try:
        assert plan.forced_form() is None
        with use_form("offset"), use_form(None):
            assert plan.forced_form() is None
    finally:
        done.set()
        thread.join()


def test_the_backward_pass_uses_the_form_of_its_forward_pass(monkeypatch):
    """The backward pass recomputes chunks, perhaps in another thread and after `use_form` has ended."""
    called = []
    offset = local_attention.offset_attention
    monkeypatch.setattr(local_attention, "offset_attention", lambda *args: called.append(1) or offset(*args))
    monkeypatch.setattr(plan, "_CHUNK_BYTES", 1)
    layer = ACmix2d(4, 8)
    with use_form("offset"):
        out = layer(torch.randn(2, 4, 18, 18))
    before = len(called)
    thread = threading.Thread(target=out.sum().backward)
    thread.start()
    thread.join()
    assert before == 2 and len(called) == 4


@pytest.mark.parametrize(("name", "word"), [("global", "attention: global"), ("quick", "got 'quick'")])
def test_form_from_the_environment(name, word):
    code = "from acmix_zoo.ops import explain_plan; print(explain_plan((1, 64, 56, 56), 64))"
    done = subprocess.run([sys.executable, "-c", code], env={"ACMIX_FORM": name}, capture_output=True, text=True)
    assert word in done.stdout + done.stderr


def test_explained_plans():
    assert "tiles, 4×7 queries a tile with 10×13 keys (2.7 for" in explain_plan((8, 64, 56, 56), 64)
    assert "are made again" in explain_plan((8, 64, 56, 56), 64)
    assert "are kept" in explain_plan((8, 256, 28, 28), 256, stride=2)
    assert "global" in explain_plan((8, 512, 7, 7), 512) and "8 of 8 images" in explain_plan((8, 512, 7, 7), 512)
    assert "this is cuda" in explain_plan((8, 64, 56, 56), 64, device="cuda")
    assert "backend: Python: the native backend" in explain_plan((8, 64, 56, 56), 64, itemsize=2)
    with use_form("tiles"):
        assert "backend: Python: use_form or ACMIX_FORM asks for 'tiles'" in explain_plan((8, 64, 56, 56), 64)
