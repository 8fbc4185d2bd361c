"""The benchmark measures time and memory. No test depends on how long something takes."""

from __future__ import annotations

import json
import resource
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from support.benchmarks import ROW

from acmix_zoo.bench import measure as measure_module
from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.measure import measure
from acmix_zoo.bench.memory import OutOfMemory, unified_memory_errors
from acmix_zoo.bench.results import read_csv
from acmix_zoo.cli.bench import bench
from acmix_zoo.cli.main import main


class TestCommand:
    def test_missing_packages_are_named_before_anything_is_measured(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr("acmix_zoo.cli.packages.find_spec", lambda name: None)
        monkeypatch.setattr("acmix_zoo.bench.measure.measure", lambda *args: pytest.fail("measured"))
        with pytest.raises(ModuleNotFoundError, match="bench needs rich and matplotlib"):
            bench(["acmix_resnet_pico", "--plot", "speed.png"])

    @pytest.mark.parametrize(
        "names",
        [
            ["acmix2d:16x64@reference"],
            pytest.param(["acmix2d:16x64", "acmix2d:16x64@reference"], marks=pytest.mark.slow),
        ],
        ids=len,
    )
    def test_memory_table_csv_and_plot(
        self, names: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The reference backend makes 49 copies of a 16-channel map of 64², four bytes per value: 12 MiB.

        A fresh process for each candidate measures at least those, and that the fast backend does not make them.
        """
        files = ["--csv", str(tmp_path / "a.csv"), "--plot", str(tmp_path / "a.png")]
        rows = bench([*names, "--batch", "1", "--threads", "1", "--repeats", "1", *files])
        assert [row.candidate for row in rows] == names
        assert all((row.peak_mib > 12) == row.candidate.endswith("@reference") and row.peak_mib >= 0 for row in rows)
        assert all(row.ms_q1 <= row.ms <= row.ms_q3 and row.batch == 1 for row in rows)
        assert read_csv(tmp_path / "a.csv") == rows
        assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
        out = capsys.readouterr().out
        assert "inference, 16×64×64, batch 1, 1 thread, float32" in out and "acmix2d:16x64" in out

    def test_both_modes(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(measure_module, "matmul_peak", lambda *_: 100.0)
        quick = ["--threads", "1", "--repeats", "1", "--no-memory"]
        rows = bench(["acmix2d:8x9", "conv3x3:8x9", "--mode", "both", "--batch", "2", *quick])
        assert [row.mode for row in rows] == ["inference", "inference", "training", "training"]
        assert rows[1].macs == 8 * 8 * 9 * 9**2
        assert rows[1].peak_fraction == pytest.approx(rows[1].gflops / 100, abs=1e-3)

    def test_growth(self, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
        def record(group: list[Candidate], *_: object) -> list[object]:
            return [replace(ROW, candidate=c.name, input="8×9×9", batch=c.batch, ms=2.0 * c.batch) for c in group]

        monkeypatch.setattr(measure_module, "measure", record)
        rows = bench(["acmix2d:8x9", "conv3x3:8x9", "--over", "batch"])
        assert [row.candidate for row in rows] == ["acmix2d:8x9"] * 5 + ["conv3x3:8x9"] * 5
        assert "conv3x3:8x9: time grows as images^1.00" in capsys.readouterr().out

    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            (["resnet18", "--batch", "0"], "--batch must be at least 1"),
            (["resnet18", "--repeats", "0"], "--repeats must be at least 1"),
            (["resnet18", "--dtyp32", "float16"], "unknown option --dtyp32; did you mean --dtype?"),
        ],
    )
    def test_wrong_options_give_one_line(
        self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
    ) -> None:
        with pytest.raises(SystemExit):
            bench(arguments)
        error = capsys.readouterr().err
        assert message in error and error.count("\n") == 2  # the error, and how to list the options

    def test_a_network_of_a_fixed_size(self) -> None:
        with pytest.raises(ValueError, match=r"mixer_s32_224 does not work with images of 64×64 pixels"):
            measure([Candidate("mixer_s32_224", 1, 64)], rounds=1, with_memory=False)
        assert measure([Candidate("twins_pcpvt_small", 1, 64)], rounds=1, with_memory=False)[0].input == "3×64×64"

    def test_unknown_network(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "acmix_resnet5"]) == 1
        assert "acmix_resnet50" in capsys.readouterr().err

    @pytest.mark.slow
    def test_images_that_are_too_small_for_the_authors_code(self, capsys: pytest.CaptureFixture[str]) -> None:
        assert main(["bench", "released:16x2", "--batch", "1"]) == 1
        assert "a 2×2 feature map is too small for its 7×7 window" in capsys.readouterr().err


@pytest.mark.slow
def test_peak_memory_of_the_authors_code() -> None:
    (row,) = measure([Candidate("released:16x64", batch=1, threads=1)], rounds=1)
    assert row.peak_mib > 12


class TestOutOfMemory:
    def test_batch_is_halved_for_all_candidates(self, monkeypatch: pytest.MonkeyPatch) -> None:
        real, batches = measure_module._measure_once, []

        def limited(candidates: list[Candidate], *arguments: object) -> object:
            batches.append({candidate.batch for candidate in candidates})
            if candidates[0].batch > 2:
                raise MemoryError
            return real(candidates, *arguments)

        monkeypatch.setattr(measure_module, "_measure_once", limited)
        names = ("acmix2d:8x9", "conv3x3:8x9")
        rows = measure([Candidate(n, 8, threads=1) for n in names], 1, with_memory=False, matmul_gflops=1.0)
        assert batches == [{8}, {4}, {2}] and [row.batch for row in rows] == [2, 2]

    def test_not_even_one_image_fits(self, monkeypatch: pytest.MonkeyPatch) -> None:
        def fail(*_: object) -> None:
            raise MemoryError

        monkeypatch.setattr(measure_module, "_measure_once", fail)
        with pytest.raises(OutOfMemory):
            measure([Candidate("conv3x3:8x9", 2, threads=1)])

    @pytest.mark.slow
    def test_real_limit(self) -> None:
        """Run in a process that may take 1 GiB more than it has. A batch of 64 of the reference does not fit."""
        code = f"""
import resource, sys
sys.path.insert(0, {str(Path(__file__).parents[2])!r})
import torch
torch.set_num_threads(1)
from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.measure import measure
used = int(open("/proc/self/statm").read().split()[0]) * {resource.getpagesize()}
resource.setrlimit(resource.RLIMIT_AS, (used + (1 << 30),) * 2)
names = ("acmix2d:16x64@reference", "conv3x3:16x64")
print([row.batch for row in measure([Candidate(n, 64, threads=1) for n in names], 1, with_memory=False)])
"""
        done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        first, second = json.loads(done.stdout)
        assert first == second < 64

    @pytest.mark.parametrize(
        "error", [MemoryError("x"), RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried …")]
    )
    def test_errors_of_allocators(self, error: Exception) -> None:
        with pytest.raises(OutOfMemory), unified_memory_errors():
            raise error

    def test_other_errors_pass_through(self) -> None:
        with pytest.raises(RuntimeError, match="shapes") as caught, unified_memory_errors():
            raise RuntimeError("shapes do not match")
        assert not isinstance(caught.value, OutOfMemory)
