"""The speed tables of README and docs/performance.md, made from small CSV files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.benchmarks import ROW

from acmix_zoo.bench.results import write_csv
from tools.speed_table import NOT_MEASURED, speed_summary, speed_table


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    layer = [ROW, replace(ROW, candidate="released:64x56", ms=900.0, peak_mib=700.0)]
    write_csv([*layer, *(replace(row, threads=1) for row in layer)], tmp_path / "layer.csv")
    network = replace(ROW, candidate="acmix_resnet50")
    write_csv([network, replace(network, candidate="resnet50", batch=4, ms=16.0)], tmp_path / "networks.csv")
    machine = {"cpu": "X", "cores": 2, "matmul_gflops": {"2": 90.0, "1": 50.0}, "torch": "2", "timm": "1"}
    (tmp_path / "machine.json").write_text(json.dumps({**machine, "date": "2026-01-02"}))
    return tmp_path


def test_ratios_are_per_image_and_next_to_their_targets(measurements: Path) -> None:
    table = speed_table(measurements)
    assert "| ACmix2d 64×56, batch 8, inference | authors' code | ≥ 22× | 22.5× faster | 22.5× faster |" in table
    assert "batch 8, inference: peak memory | authors' code | ≥ 33× | 35× less | 35× less |" in table
    assert "| `acmix_resnet50`, batch 8, inference | `resnet50` | ≤ 1.2× | 1.25× the time |  |" in table
    assert "2026-01-02" in table and "90.0 GFLOP/s with 2 threads and 50.0 GFLOP/s with 1 thread." in table


def test_summary_has_four_rows(measurements: Path) -> None:
    rows = [line for line in speed_summary(measurements).splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    assert "| `acmix_resnet50`, batch 8, inference | `resnet50` | 1.25× the time |  |" in rows


def test_before_the_first_measurement(tmp_path: Path) -> None:
    assert speed_table(tmp_path) == speed_summary(tmp_path) == NOT_MEASURED
