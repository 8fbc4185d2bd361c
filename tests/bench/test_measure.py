"""The benchmark measures what it says. No test looks at how long anything took."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from acmix_zoo import ACmix2d
from acmix_zoo.bench.candidates import Case, backend, build
from acmix_zoo.bench.growth import BATCHES, fitted_exponent, growth_cases, growths
from acmix_zoo.bench.measure import OutOfMemory, Row, guarded, measure
from acmix_zoo.bench.passes import Pass
from acmix_zoo.bench.released import ReleasedForm
from acmix_zoo.bench.table import read_csv
from acmix_zoo.cli.bench import bench
from acmix_zoo.ops.dispatch import choose_tile, plan_attention
from acmix_zoo.ops.sliding_window import SlidingWindow
from tools.suite import GROUPS

ROW = Row("acmix2d:64x56", "inference", 2, "float32", 8, "64×56×56", 40.0, 39.0, 42.0, 200.0, 20.0, 10**8, 40.0, 0.2)


@pytest.mark.parametrize(("stride", "size"), [(1, 9), (2, 12), (2, 13)])
def test_released_form_computes_the_same(stride: int, size: int) -> None:
    torch.manual_seed(0)
    layer = ACmix2d(8, 16, stride=stride)
    x = torch.randn(2, 8, size, size + 3)
    torch.testing.assert_close(ReleasedForm(layer)(x), layer(x), rtol=1e-4, atol=1e-5)


def test_released_form_refuses_what_the_authors_have_not() -> None:
    with pytest.raises(ValueError, match="both paths and dilation 1"):
        ReleasedForm(ACmix2d(4, 4, dilation=2))


def test_contestants_agree() -> None:
    """What is compared computes the same function."""
    outs = []
    for name in ("acmix2d:16x12s2", "acmix2d:16x12s2@reference", "released:16x12s2"):
        module, shape = build(Case(name))
        outs.append(module(torch.linspace(-1, 1, 16 * 144).view(1, *shape)))
        Pass(Case(name, batch=1, train=True))()
    for out in outs[1:]:
        torch.testing.assert_close(out, outs[0], rtol=1e-4, atol=1e-4)
    sums = [build(Case(f"{kind}:16x9k5", batch=2))[0] for kind in ("aggregate", "unfold")]
    value = torch.randn(2, 16, 9, 9)
    torch.testing.assert_close(sums[0](value), sums[1](value), rtol=1e-4, atol=1e-5)
    assert sums[0].macs == 25 * 16 * 81
    small = dict(size=64, kwargs='{"layers": [1, 1, 1]}')  # the released form needs maps larger than half a window
    networks = [build(Case(name, **small))[0].eval() for name in ("acmix_resnet_pico", "acmix_resnet_pico@released")]
    x = torch.randn(1, networks[0].in_chans, 64, 64)
    torch.testing.assert_close(networks[0](x), networks[1](x), rtol=1e-3, atol=1e-4)


@pytest.mark.parametrize(
    ("case", "words"),
    [
        (("acmix_resnet5",), "there is no network 'acmix_resnet5'.*acmix_resnet50"),
        (("unfold:12x7",), "12 must be a multiple of 8"),
        (("resnet18@fast",), "expected @released, @reference.* or a tile such as @tile8x16, got @fast"),
        (("resnet18", 1, 0, False, 1, "float31"), "expected a dtype of torch"),
    ],
)
def test_wrong_contestants(case: tuple[object, ...], words: str) -> None:
    with pytest.raises(ValueError, match=words):
        build(Case(*case))  # type: ignore[arg-type]


def test_command_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    files = ["--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]
    rows = bench(["acmix2d:8x18", "conv3x3:8x18", "--batch", "2", "--threads", "1", "--repeats", "1", *files])
    assert read_csv(tmp_path / "a.csv") == rows
    assert [row.contestant for row in rows] == ["acmix2d:8x18", "conv3x3:8x18"]
    assert rows[1].macs == 8 * 8 * 9 * 18**2 and min(row.peak_mib for row in rows) >= 0
    assert all(row.ms_q1 <= row.ms <= row.ms_q3 and row.batch == 2 for row in rows)
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    training = bench(["acmix2d:8x18", "--mode", "both", "--threads", "1", "--repeats", "1", "--no-memory"])
    assert [row.mode for row in training] == ["inference", "training"]
    out = capsys.readouterr().out
    assert "inference, 8×18×18, batch 2, 1 thread, float32" in out and "conv3x3:8x18" in out


def test_peak_counts_the_copies_of_the_reference() -> None:
    """49 copies of a 16-channel map of 64², four bytes each, are 12 MiB; a fresh process sees at least those, and that
    the fast form has none of them."""
    cases = [Case(name, batch=1, threads=1) for name in ("acmix2d:16x64", "acmix2d:16x64@reference", "released:16x64")]
    fast, reference, released = measure(cases, repeats=1)
    assert reference.peak_mib > 12 and released.peak_mib > 12 > fast.peak_mib


def test_memory_that_runs_out_halves_the_batch() -> None:
    """In a process that may take 4 GiB more than it has: a batch of 64 of the reference does not fit."""
    code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from acmix_zoo.bench.measure import measure
from acmix_zoo.bench.candidates import Case
used = int(open("/proc/self/statm").read().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
rows = measure([Case("acmix2d:16x64@reference", 64, threads=1), Case("conv3x3:16x64", 64, threads=1)], 1, memory=False)
print([row.batch for row in rows])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    one, other = json.loads(done.stdout)
    assert one == other < 64


def test_only_memory_errors_are_taken_for_such() -> None:
    def fail(error: Exception) -> None:
        raise error

    for error in (MemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")):
        with pytest.raises(OutOfMemory):
            guarded(lambda error=error: fail(error))
    with pytest.raises(RuntimeError, match="shapes"):
        guarded(lambda: fail(RuntimeError("shapes do not match")))


def test_growth() -> None:
    assert fitted_exponent([1, 2, 4, 8], [3, 12, 48, 192]) == pytest.approx(2)
    assert fitted_exponent([1, 10, 100], [5, 5, 5]) == pytest.approx(0)
    sizes = [
        replace(ROW, input=f"3×{n}×{n}", batch=b, ms=b * n**2, peak_mib=b * n) for n, b in ((64, 9), (224, 4), (448, 1))
    ]
    first, time, memory = growths(sizes, "size")
    assert "time grows as pixels^1.00, peak memory as pixels^0.50" in first
    assert time.endswith("1.00× at 64², 1.00× at 224², 1.00× at 448²")
    assert memory.endswith("3.50× at 64², 1.00× at 224², 0.50× at 448²")


def test_growth_cases() -> None:
    assert [case.batch for case in growth_cases(Case("resnet18"), "batch")] == list(BATCHES)
    assert growth_cases(Case("acmix2d:8x18s2"), "size")[-1].contestant == "acmix2d:8x1024s2"
    sizes = growth_cases(Case("resnet18", 8), "size")
    assert [(case.size, case.batch) for case in sizes] == [(64, 98), (128, 24), (224, 8), (448, 2), (1024, 1)]
    for name, start in (("acmix_resnet26", 1), ("acmix_swin_t", 2)):
        deep = growth_cases(Case(name), "depth")
        assert [next(iter(json.loads(case.kwargs).values())) for case in deep] == [
            [start * n, 1, 1, 1] for n in (1, 2, 3, 4)
        ]
        assert sum(p.numel() for p in build(deep[1])[0].parameters()) > sum(
            p.numel() for p in build(deep[0])[0].parameters()
        )
    with pytest.raises(ValueError, match="needs a network with stages"):
        growth_cases(Case("acmix2d:8x18"), "depth")


def test_standard_suite_names_what_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its contestants can be built; the measurement itself takes half an hour."""
    from tools import suite

    seen: list[Case] = []

    def note(cases: list[Case], *args: object, **kwargs: object) -> list[Row]:
        seen.extend(cases)
        n = len(seen)
        return [replace(ROW, contestant=case.contestant, input=f"3×{n}×{n}", batch=n, macs=n) for case in cases]

    monkeypatch.setattr(suite, "measure", note)
    rows = [row for group in GROUPS.values() for row in group()]
    assert len(rows) == len(seen) > 100
    for name in {case.contestant for case in seen}:
        with torch.device("meta"):
            build(Case(name, device="meta"))


def test_a_backend_or_tile_is_used_while_its_contestant_runs() -> None:
    with backend(Case("acmix2d:16x20@tile8x16")):
        assert plan_attention(20, 20, 7, device="cpu").tile == (8, 16)
        assert plan_attention(14, 14, 7, device="cpu").tile == (8, 16)  # also where the map would be small enough
        assert plan_attention(20, 20, 7, device="cuda").tile != (8, 16)
    with backend(Case("acmix2d:16x20@global")):
        assert plan_attention(20, 20, SlidingWindow(7)).backend == "global"
    assert plan_attention(20, 20, SlidingWindow(7)).tile == choose_tile(20, 20, SlidingWindow(7))


def test_autocast_keeps_float32_weights() -> None:
    case = Case("acmix2d:16x18", batch=1, train=True, threads=1, dtype="bfloat16", autocast=True)
    run, seen = Pass(case), []
    run.module.register_forward_hook(lambda _, __, out: seen.append(out.dtype))
    run()
    assert seen == [torch.bfloat16]
    assert {p.dtype for p in run.module.parameters()} == {torch.float32}
    assert all(p.grad is not None for p in run.module.parameters())
    run.release()
    assert all(p.grad is None for p in run.module.parameters())
