"""`DecomposedConv2d` equals conv2d, in values and gradients, for each way to shift the maps."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import torch
from torch import nn

from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.bench.decomposition import DecomposedConv2d
from acmix_zoo.cli.main import main

SHIFTS = ("tensor", "frozen", "learnable")
PAGE = Path(__file__).parents[2] / "docs" / "decomposition.md"


@pytest.mark.parametrize("shift", SHIFTS)
@pytest.mark.parametrize(("kernel", "size"), [(1, (4, 3)), (3, (6, 5)), (5, (7, 2)), (3, (1, 1))])
def test_equals_conv2d(shift: str, kernel: int, size: tuple[int, int]) -> None:
    conv = nn.Conv2d(3, 4, kernel, padding=kernel // 2).double()
    module = DecomposedConv2d.from_conv(conv, shift)
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


@pytest.mark.parametrize("shift", SHIFTS)
def test_shifts_are_parameters_only_where_they_are_learnable(shift: str) -> None:
    module = DecomposedConv2d(2, 3, shift=shift)
    module(torch.randn(1, 2, 5, 5)).square().sum().backward()
    assert all(p.grad.abs().sum() > 0 for p in module.parameters())
    names = {"projections.weight", "bias"} | ({"shifts"} if shift == "learnable" else set())
    assert module.state_dict().keys() == names


def test_errors() -> None:
    with pytest.raises(ValueError, match=r"unknown shift 'roll'\. Expected one of tensor, frozen, learnable"):
        DecomposedConv2d(2, 2, shift="roll")
    with pytest.raises(ValueError, match=r"kernel=4 is even\. Expected an odd size\. Use 5"):
        DecomposedConv2d(2, 2, 4)


def test_candidates_of_the_benchmark_compute_the_same() -> None:
    x = torch.randn(1, 8, 9, 9)
    outs = [build(Candidate(f"{kind}:8x9")).module(x) for kind in ("conv3x3", *(f"shift-{shift}" for shift in SHIFTS))]
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="shift-frozen does not support a stride of 2"):
        build(Candidate("shift-frozen:8x9s2"))


def test_commands_and_snippets_of_the_page(capsys: pytest.CaptureFixture[str]) -> None:
    text = PAGE.read_text(encoding="utf-8")
    command, printed = re.search(r"```console\n\$ acmix-zoo (.*?)\n(.*?)```", text, re.DOTALL).groups()
    main(command.split())
    assert capsys.readouterr().out == printed
    for snippet in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        exec(snippet, {})
    assert all(float(line.split()[1]) < 1e-5 for line in capsys.readouterr().out.splitlines())
