"""The CPU suite: every candidate that it names exists. The measurement itself takes too long for a test."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
import torch
from support.benchmarks import ROW

from acmix_zoo.bench.candidates import Candidate, build
from acmix_zoo.bench.results import Row, read_csv
from tools import suite


def test_every_candidate_exists(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[Candidate] = []

    def record(candidates: list[Candidate], *args: object, **kwargs: object) -> list[Row]:
        seen.extend(candidates)
        n = len(seen)
        return [replace(ROW, candidate=c.name, input=f"3×{n}×{n}", batch=n, macs=n) for c in candidates]

    monkeypatch.setattr(suite, "measure", record)
    rows = [row for group in suite.GROUPS.values() for row in group()]
    assert len(rows) == len(seen) > 100
    for name in {candidate.name for candidate in seen}:
        with torch.device("meta"):
            build(Candidate(name, device="meta"))


def test_files_are_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(suite.GROUPS, "layer", lambda: iter([ROW]))
    monkeypatch.setattr(suite, "matmul_peak", lambda threads: 100.0)
    suite.main([str(tmp_path / "new"), "layer"])
    assert read_csv(tmp_path / "new" / "layer.csv") == [ROW]
    assert '"1": 100.0' in (tmp_path / "new" / "machine.json").read_text(encoding="utf-8")


def test_an_unknown_group_is_rejected(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        suite.main([str(tmp_path / "new"), "layers"])
    assert "unknown group layers. Expected one of layer, aggregation" in capsys.readouterr().err
    assert not (tmp_path / "new").exists()
