"""Rehearse `make bench-gpu` without a GPU. No test depends on timings."""

from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from acmix_zoo.bench import passes
from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.bench.memory import gpu_peak
from acmix_zoo.bench.passes import Pass
from acmix_zoo.bench.results import read_rows
from tools import gpu_suite
from tools.gpu_groups import PARTS, Group
from tools.gpu_suite import Budget, GpuRow, main, missing_gpu, tf32

TINY = [
    Group(("conv3x3:8x9", "acmix2d:8x9"), precision, train)
    for precision in ("bfloat16", "float32", "tf32")
    for train in (False, True)
]
REHEARSAL = ["layers", "--device", "cpu", "--seconds", "60"]


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(PARTS, "layers", lambda: iter(TINY))


def test_a_rehearsal_measures_every_group_once(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.csv"
    assert main([*REHEARSAL, "--csv", str(path)]) == 0
    rows = read_rows(path, GpuRow)
    assert len(rows) == 2 * len(TINY) == len({row.key for row in rows})
    for plain, acmix in zip(rows[::2], rows[1::2], strict=True):
        assert plain.ratio == 1 and plain.baseline == acmix.baseline == "conv3x3:8x9"
        assert acmix.ratio == pytest.approx(acmix.ms / plain.ms, abs=1e-3)
        assert acmix.ms_q1 <= acmix.ms <= acmix.ms_q3 and acmix.batch == 2
    assert {(row.precision, row.mode) for row in rows} == {(group.precision, group.mode) for group in TINY}
    before = path.read_bytes()
    capsys.readouterr()
    assert main([*REHEARSAL, "--csv", str(path)]) == 0  # nothing is left to measure
    assert capsys.readouterr().out == f"{path} has {len(rows)} rows.\n"
    assert path.read_bytes() == before


def test_groups_that_do_not_fit_are_listed(tiny: None, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "gpu.csv"
    assert main([*REHEARSAL[:-1], "0", "--csv", str(path)]) == 0
    out = capsys.readouterr().out
    assert "Not measured for lack of time:" in out and "Run the same command again" in out
    assert all(f"acmix2d:8x9 against conv3x3:8x9, {group.precision}, {group.mode}" in out for group in TINY)
    assert not path.exists()


def test_a_failing_group_does_not_stop_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    groups = [Group(("conv3x3:8x9", "acmix2d:7x9"), "float32", False), TINY[2]]  # four heads do not divide 7
    monkeypatch.setitem(PARTS, "layers", lambda: iter(groups))
    assert main([*REHEARSAL, "--csv", str(tmp_path / "gpu.csv")]) == 1
    assert "Failed:\n  acmix2d:7x9 against conv3x3:8x9, float32, inference: ValueError: " in capsys.readouterr().out
    assert len(read_rows(tmp_path / "gpu.csv", GpuRow)) == 2


def test_budget_learns_the_time_of_each_kind_of_group() -> None:
    layer, network = TINY[0], Group(("resnet50", "acmix_resnet50"), "float32", False)
    budget = Budget(10)
    assert budget.allows(layer) and not budget.allows(network)
    budget._seen[network.kind] = 0.5
    assert budget.allows(network)


def test_tf32_is_set_for_products_and_convolutions_alike() -> None:
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    for on in (True, False):
        with tf32(on):
            assert (torch.get_float32_matmul_precision() == "high") is torch.backends.cudnn.allow_tf32 is on
    assert (torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32) == before


def test_every_candidate_exists() -> None:
    groups = [group for part in PARTS.values() for group in part()]
    assert len(groups) == len(set(groups)) > 100
    with torch.device("meta"):
        for name in {name for group in groups for name in group.candidates}:
            build(Candidate(name, device="meta"))


@pytest.mark.skipif(torch.cuda.is_available(), reason="has a GPU")
def test_a_missing_gpu_is_reported(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    for cuda, expected in ((None, "was built without CUDA"), ("13.0", "was built for CUDA 13.0, but finds no usable")):
        monkeypatch.setattr(torch.version, "cuda", cuda)
        message = missing_gpu()
        assert message is not None and expected in message
        for arguments in ([], ["--check"]):
            assert main(arguments) == 1
            assert capsys.readouterr().out == message + "\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tile"], "unknown part tile. Expected one of layers, networks, tiles, compiled"),
        (REHEARSAL, "needs --csv FILE"),
    ],
)
def test_wrong_arguments_are_rejected(arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(arguments)
    assert message in capsys.readouterr().err


def test_code_for_cuda_runs_with_a_fake_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run the code for CUDA with the CPU's clock and fixed numbers in place of events, allocator and properties."""

    class Event:
        def __init__(self, enable_timing: bool) -> None:
            assert enable_timing

        def record(self) -> None:
            self.at = time.perf_counter()

        def elapsed_time(self, end: Event) -> float:
            return (end.at - self.at) * 1e3

    fakes = {
        "Event": Event, "synchronize": lambda: None, "reset_peak_memory_stats": lambda: None,
        "memory_allocated": lambda: 1 << 20, "max_memory_allocated": lambda: 4 << 20,
        "get_device_name": lambda: "Card", "get_device_properties": lambda i: SimpleNamespace(total_memory=85 * 10**9),
    }  # fmt: skip
    for name, fake in fakes.items():
        monkeypatch.setattr(torch.cuda, name, fake)
    run = Pass(Candidate("acmix2d:8x9", batch=1, train=True, threads=1))
    found = passes._run_cuda_round(run, 0.02)
    assert 1 <= len(found) <= 100 and min(found) > 0
    assert gpu_peak(run) == 3
    monkeypatch.setenv("PATH", "")
    assert gpu_suite._card() == ("Card", "unknown")  # there is no nvidia-smi
    assert gpu_suite._batch() == 128


@pytest.mark.gpu
def test_a_gpu_is_measured(tiny: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows have the name of the card, the memory, and times from CUDA events."""
    monkeypatch.setattr(gpu_suite, "_EXPECTED", dict.fromkeys(gpu_suite._EXPECTED, 1.0))
    assert main(["layers", "--seconds", "120", "--csv", str(tmp_path / "gpu.csv")]) == 0
    rows = read_rows(tmp_path / "gpu.csv", GpuRow)
    assert len(rows) == 2 * len(TINY) and {row.card for row in rows} == {torch.cuda.get_device_name()}
    assert all(row.ms > 0 and row.peak_mib > 0 and row.memory_ratio > 0 for row in rows)
