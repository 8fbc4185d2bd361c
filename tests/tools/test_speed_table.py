"""The speed tables of README and docs/performance.md, made from small CSV files."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from support.benchmarks import ROW

from acmix_zoo.bench.results import write_csv
from tools.speed_table import NOT_MEASURED, speed_summary, speed_table


def write_machine(folder: Path, instructions: str) -> None:
    machine = {"cpu": "X", "instructions": instructions, "cores": 2, "matmul_gflops": {"2": 90.0, "1": 50.0}}
    folder.mkdir(exist_ok=True)
    (folder / "machine.json").write_text(json.dumps({**machine, "torch": "2", "timm": "1", "date": "2026-01-02"}))


@pytest.fixture
def measurements(tmp_path: Path) -> Path:
    layer = [ROW, replace(ROW, candidate="released:64x56", ms=900.0, peak_mib=700.0)]
    layer.append(replace(ROW, candidate="conv3x3:64x56", ms=50.0, peak_fraction=0.9))
    write_csv([*layer, *(replace(row, threads=1) for row in layer)], tmp_path / "layer.csv")
    network = replace(ROW, candidate="acmix_resnet50")
    write_csv([network, replace(network, candidate="resnet50", batch=4, ms=16.0)], tmp_path / "networks.csv")
    write_machine(tmp_path, "AVX-512")
    return tmp_path


def test_ratios_are_per_image_and_next_to_their_targets(measurements: Path) -> None:
    table = speed_table(measurements)
    assert "| benchmark | baseline | target | AVX-512, 2 threads | AVX-512, 1 thread |" in table
    assert "| ACmix2d 64×56, batch 8, inference | authors' code | ≥ 100× | 22.5× faster | 22.5× faster |" in table
    assert "| ACmix2d 64×56, batch 8, inference | 3×3 convolution |  | 0.80× the time | 0.80× the time |" in table
    assert "batch 8, inference: peak memory | authors' code | ≥ 33× | 35× less | 35× less |" in table
    assert "| `acmix_resnet50`, batch 8, inference | `resnet50` | ≤ 0.9× | 1.25× the time |  |" in table
    assert "2026-01-02" in table and "90.0 GFLOP/s with 2 threads and 50.0 GFLOP/s with 1 thread." in table


def test_a_second_setting_has_columns_of_its_own(measurements: Path) -> None:
    write_machine(measurements / "avx2", "AVX2")
    network = replace(ROW, candidate="acmix_resnet50", threads=1)
    write_csv([network, replace(network, candidate="resnet50", ms=50.0)], measurements / "avx2" / "networks.csv")
    table = speed_table(measurements)
    assert "| AVX-512, 2 threads | AVX-512, 1 thread | AVX2, 2 threads | AVX2, 1 thread |" in table
    assert "| `resnet50` | ≤ 0.9× | 1.25× the time |  |  | 0.80× the time |" in table


def test_layers_are_compared_with_the_peak(measurements: Path) -> None:
    assert "| 64×56 | 20 % |  | 90 % |  |" in speed_table(measurements)


def test_small_networks_have_a_row_for_each_image_size(measurements: Path) -> None:
    rows = [replace(ROW, candidate="pico", input=size, threads=n) for size in ("3×32×32", "3×64×64") for n in (1, 2)]
    write_csv(rows, measurements / "small.csv")
    table = speed_table(measurements)
    assert "| training, batch 64 | `pico`, 2 threads | `pico`, 1 thread |" in table
    assert "| 3×64×64 | 200 images/s | 200 images/s |" in table


def test_summary_has_four_rows(measurements: Path) -> None:
    rows = [line for line in speed_summary(measurements).splitlines() if line.startswith("| `")]
    assert len(rows) == 4
    assert "| `acmix_resnet50`, batch 8, inference | `resnet50` | 1.25× the time |  |" in rows


def test_before_the_first_measurement(tmp_path: Path) -> None:
    assert speed_table(tmp_path) == speed_summary(tmp_path) == NOT_MEASURED
