"""The projection as a oneDNN convolution: when it is chosen, and that it equals the matrix product."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd.gradcheck import gradgradcheck
from torch.func import vmap

from acmix_zoo import ACmix2d
from acmix_zoo.ops import explain_plan, projection
from acmix_zoo.ops.projection import project, project_backward, runs_as_convolution

EPS = torch.finfo(torch.float32).eps


@pytest.fixture
def convolution(monkeypatch: pytest.MonkeyPatch) -> None:
    """Choose the convolution on every CPU and for every size."""
    monkeypatch.setattr(projection, "prefers_convolution", lambda: True)
    monkeypatch.setattr(projection, "_CONVOLUTION_FROM_MACS", 0)


def case(b: int, c: int, n: int, h: int, w: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    torch.manual_seed(b + c + n)
    x = torch.randn(b, c, h, w).contiguous(memory_format=torch.channels_last)
    return x, torch.randn(n, c), torch.randn(n)


@pytest.mark.parametrize("shape", [(2, 8, 24, 5, 7), (1, 3, 12, 1, 1), (3, 64, 192, 9, 4), (8, 17, 6, 2, 2)])
def test_convolution_equals_the_matrix_product(shape, convolution):
    """Output and gradients agree up to the rounding of a float32 sum of so many products."""
    x, weight, bias = (t.requires_grad_() for t in case(*shape))
    assert runs_as_convolution(x, weight)
    out = project(x, weight, bias)
    grad = torch.randn_like(out)
    exact = [t.detach().double().requires_grad_() for t in (x, weight, bias)]
    expected = F.linear(exact[0].permute(0, 2, 3, 1), exact[1], exact[2])
    want = [expected, *torch.autograd.grad(expected, exact, grad.double())]
    got = [out, *torch.autograd.grad(out, [x, weight, bias], grad)]
    d_x, d_weight = project_backward(grad, x.detach(), weight.detach())
    got += [d_x, d_weight]
    want += want[1:3]
    b, c, n, h, w = shape
    for actual, reference, terms in zip(got, want, [c + 1, n, b * h * w, b * h * w, n, b * h * w], strict=True):
        assert actual.shape == reference.shape
        # Each product is about 1; a sum of `terms` of them is wrong by at most terms · eps · the sum of magnitudes.
        assert (actual.double() - reference).abs().max() <= EPS * terms**1.5 + 4 * EPS
    assert project_backward(grad, x.detach(), weight.detach(), needs_x=False)[0] is None


@pytest.mark.filterwarnings("ignore:Input #")  # is not float64, which would not use the convolution
def test_second_derivatives(convolution):
    """PyTorch differentiates the convolution twice."""
    x, weight, bias = (t.requires_grad_() for t in case(1, 3, 4, 2, 2))
    assert runs_as_convolution(x, weight)
    assert gradgradcheck(project, (x, weight, bias), eps=1e-2, atol=1e-2, rtol=1e-2)


def test_other_calls_stay_a_matrix_product(convolution):
    x, weight, _ = case(2, 8, 24, 5, 7)
    assert not runs_as_convolution(x.contiguous(), weight)
    assert not runs_as_convolution(x.double(), weight.double())
    assert not runs_as_convolution(x.bfloat16(), weight.bfloat16())
    seen = []
    vmap(lambda y: seen.append(runs_as_convolution(y, weight)) or y)(x.unsqueeze(0))
    assert seen == [False]
    exported = torch.export.export(ACmix2d(8, 8), (x,)).graph_module.print_readable(print_output=False)
    assert "aten.linear.default" in exported and exported.count("aten.conv2d.default") == 1  # of the convolution path


def test_layer_with_the_convolution(convolution, python_backend, monkeypatch):
    """As a whole batch, in chunks and under autocast, results and gradients equal those of the matrix product."""
    layer = ACmix2d(8, 8)
    x = torch.randn(3, 8, 17, 17).contiguous(memory_format=torch.channels_last)

    def results() -> list[torch.Tensor]:
        leaf = x.detach().requires_grad_()
        out = layer(leaf)
        return [out.detach(), *torch.autograd.grad(out.sin().sum(), [leaf, *layer.parameters()])]

    calls = []
    original = F.conv2d
    monkeypatch.setattr(projection.F, "conv2d", lambda *a, **k: calls.append(k.get("dilation")) or original(*a, **k))
    for chunk in (16 << 20, 1):
        monkeypatch.setattr("acmix_zoo.ops.dispatch._CHUNK_BYTES", chunk)
        actual = results()
        assert projection._DILATION in calls
        with monkeypatch.context() as patch:
            patch.setattr(projection, "prefers_convolution", lambda: False)
            expected = results()
        for a, e in zip(actual, expected, strict=True):
            assert (a - e).abs().max() <= 1e-5 * max(float(e.abs().max()), 1.0)
        calls.clear()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert layer(x).dtype == torch.bfloat16


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 26\n\nprocessor : 1", True),
        ("vendor_id\t: AuthenticAMD\ncpu family\t: 25\n", False),
        ("vendor_id\t: GenuineIntel\ncpu family\t: 26\n", False),
        ("vendor_id\t: AuthenticAMD\n", False),
        ("", False),
    ],
    ids=["Zen 5", "Zen 4", "Intel", "no family", "empty"],
)
def test_cpus_that_use_the_convolution(text, expected, tmp_path: Path):
    file = tmp_path / "cpuinfo"
    file.write_text(text, encoding="utf-8")
    assert projection._is_wide_amd(file) is expected
    assert not projection._is_wide_amd(tmp_path / "missing")


def test_the_plan_names_the_projection(convolution, monkeypatch):
    assert "projection: 1×1 convolution by oneDNN" in explain_plan((8, 64, 56, 56), 64)
    monkeypatch.setattr(projection, "prefers_convolution", lambda: False)
    assert "projection: matrix product" in explain_plan((8, 64, 56, 56), 64)
    assert "projection: matrix product" in explain_plan((8, 64, 56, 56), 64, device="cuda")
