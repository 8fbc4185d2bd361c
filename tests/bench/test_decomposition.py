"""A convolution as projections, shift and sum: equal to conv2d, whichever way the maps are shifted."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from acmix_zoo.bench.candidates import Case, build
from acmix_zoo.bench.decomposition import DecomposedConv2d, draw
from acmix_zoo.cli.main import main

SHIFTS = ("tensor", "frozen", "learnable")


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("kernel", "size"), [(1, (4, 3)), (3, (6, 5)), (5, (7, 2)), (3, (1, 1))])
def test_equals_conv2d(shift: str, kernel: int, size: tuple[int, int]) -> None:
    conv = nn.Conv2d(3, 4, kernel, padding=kernel // 2).double()
    module = DecomposedConv2d.of(conv, shift)
    x = torch.randn(2, 3, *size, dtype=torch.float64)
    results = []
    for f in (conv, module):
        leaf = x.clone().requires_grad_()
        out = f(leaf)
        out.square().sum().backward()
        results.append((out, leaf.grad, f.bias.grad))
    for found, expected in zip(*results, strict=True):
        torch.testing.assert_close(found, expected, rtol=0, atol=1e-11)
    grads = module.projections.weight.grad.view(4, kernel, kernel, 3).permute(0, 3, 1, 2)
    torch.testing.assert_close(grads, conv.weight.grad, rtol=0, atol=1e-11)


def test_what_learns() -> None:
    """The projections always; the shifts only where they are learnable, and then from the shifts onwards."""
    for shift in SHIFTS:
        module = DecomposedConv2d(2, 3, shift=shift)
        module(torch.randn(1, 2, 5, 5)).square().sum().backward()
        assert all(p.grad.abs().sum() > 0 for p in module.parameters())
        assert ("shifts" in dict(module.named_parameters())) == (shift == "learnable")
    assert not DecomposedConv2d(2, 3, shift="frozen").state_dict().keys() - {"projections.weight", "bias"}


def test_errors() -> None:
    with pytest.raises(ValueError, match="expected shift of tensor, frozen, learnable and an odd kernel, got 'roll'"):
        DecomposedConv2d(2, 2, shift="roll")
    with pytest.raises(ValueError, match="and 4"):
        DecomposedConv2d(2, 2, 4)


def test_in_the_benchmark() -> None:
    x = torch.randn(1, 8, 9, 9)
    outs = [build(Case(f"{kind}:8x9"))[0](x) for kind in ("conv3x3", *(f"shift-{shift}" for shift in SHIFTS))]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shift-frozen has no stride, got 2"):
        build(Case("shift-frozen:8x9s2"))


def test_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    """docs/decomposition.md: what it prints of `info` is what `info` prints, and its snippet runs."""
    text = (Path(__file__).parents[2] / "docs" / "decomposition.md").read_text(encoding="utf-8")
    command, said = re.search(r"```console\n\$ acmix-zoo (.*?)\n(.*?)```", text, re.DOTALL).groups()
    main(command.split())
    assert capsys.readouterr().out == said
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, {})
    assert all(float(line.split()[1]) < 1e-5 for line in capsys.readouterr().out.splitlines())


def test_picture(tmp_path: Path) -> None:
    assert draw(torch.rand(28, 28), tmp_path / "a.png") < 1e-5
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
