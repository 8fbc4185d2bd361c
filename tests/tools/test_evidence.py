"""The tables and figures of the evidence, from rows of runs."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("scipy")

from tools import append_rows, evidence
from tools.comparison import CASES
from tools.evidence import (
    comparison_results,
    curves,
    draw_costs,
    draw_curves,
    draw_finetuning,
    draw_mixing,
    finetuning_rows,
    group_rows,
)


@pytest.fixture
def tables(tmp_path: Path) -> tuple[Path, Path]:
    """Two seeds of every case, each 1 % better than the case before it, and their epochs."""
    runs, epochs = tmp_path / "runs.csv", tmp_path / "epochs.csv"
    for i, case in enumerate(CASES):
        for seed in (0, 1):
            row = {**case._asdict(), "seed": seed, "parameters": 1000 * (i + 1), "macs": 10**6 * (i + 1)}
            append_rows(runs, [{**row, "top1": 0.3 + i / 100 + seed / 50, "minutes": 10 + i}])
            factors = {"alpha": "0.5 0.6", "beta": "0.4 0.3"}
            for epoch in (1, 2):
                scores = {"epoch": epoch, "train_loss": 2, "val_top1": 0.1 * epoch + seed / 50}
                append_rows(epochs, [{"run": f"{case.name}-seed{seed}", **scores, **factors}])
    return runs, epochs


def test_networks_are_compared_with_acmix_of_the_same_family(tables: tuple[Path, Path]) -> None:
    header, *rows = group_rows("paths", tables[0])
    assert [row[0] for row in rows] == [
        *(f"`acmix_resnet_pico`, {paths}" for paths in ("both", "attention", "convolution")),
        *(f"`acmix_swin_pico`, {paths}" for paths in ("both", "attention", "convolution")),
        *("`acmix_san_pico`, both", "`acmix_san_pico`, attention"),
    ]
    assert [row[header.index("difference, same seeds")].split(" ")[0] for row in rows] == [
        *("", "+2.0", "+4.0"),
        *("", "+2.0", "+4.0"),
        *("", "+1.0"),
    ]
    assert rows[0][header.index("test top-1")] == "31.0 ± 1.4 %" and rows[0][header.index("runs")] == "2"


def test_networks_with_one_path_are_also_compared_at_equal_time(tables: tuple[Path, Path]) -> None:
    header, *rows = group_rows("time", tables[0])
    assert [row[0] for row in rows] == [row[0] for row in group_rows("paths", tables[0])[1:7]]  # without SAN
    assert [row[header.index("difference, same seeds")].split(" ")[0] for row in rows] == [
        *("", "+8.0", "+10.0"),  # eight and ten cases after the first
        *("", "+8.0", "+10.0"),
    ]
    assert {(case.group, case.epochs) for case in CASES if case.group != "upgrade"} == {
        *((group, 10) for group in ("paths", "neighbours", "ablations")),
        *(("time", 11), ("neighbours-time", 11), ("neighbours-time", 9)),
    }


def test_upgraded_networks_are_compared_with_plain_ones(tables: tuple[Path, Path]) -> None:
    _, *rows = group_rows("upgrade", tables[0])
    assert [(row[0], row[-2].split(" ")[0]) for row in rows] == [
        ("`acmix_swin_pico`, attention", ""), ("`acmix_swin_pico`, both", "+1.0"),
    ]  # fmt: skip


@pytest.mark.parametrize("group", ["neighbours", "neighbours-time", "ablations"])
def test_the_first_row_is_acmix(group: str, tables: tuple[Path, Path]) -> None:
    _, first, *others = group_rows(group, tables[0])
    assert first[0] == "`acmix_resnet_pico`, both" and first[-2] == ""
    assert len(others) == sum(case.group == group for case in CASES)
    assert all(row[-2].startswith("+") for row in others)


def test_without_runs_the_tables_have_a_header_alone(tmp_path: Path) -> None:
    missing = tmp_path / "missing.csv"
    assert all(len(group_rows(group, missing)) == 1 for group in ("paths", "neighbours", "ablations"))
    assert len(finetuning_rows(missing)) == 1


def test_learning_curves_are_means_over_seeds(tables: tuple[Path, Path]) -> None:
    (found,) = (curve for curve in curves("paths", tables[1]) if curve.case.name == "acmix_swin_pico-both")
    assert found.mean == pytest.approx([11, 21]) and found.spread == pytest.approx([2**0.5, 2**0.5])


@pytest.fixture
def finetuning(tmp_path: Path) -> Path:
    """Two seeds of training from scratch, on 5 and on all images per class."""
    runs = tmp_path / "finetuning.csv"
    for per_class, top1 in ((5, 0.4), (0, 0.8)):
        row = {"start": "scratch", "mode": "full", "per_class": per_class, "seed": 0, "top1": top1, "minutes": 3}
        append_rows(runs, [row, {**row, "seed": 1, "top1": top1 + 0.02, "minutes": 5}])
    return runs


def test_fine_tuning_is_summarised_by_number_of_images(finetuning: Path) -> None:
    assert finetuning_rows(finetuning)[1] == ["scratch", "full", "41.0 ± 1.4 %, 4 min", "", "", "81.0 ± 1.4 %, 4 min"]


def assert_drawn(path: Path) -> None:
    with Image.open(path) as image:
        assert sum(image.convert("L").histogram()[:200]) > 2000, "there are few dark pixels"


def test_the_figure_of_fine_tuning(finetuning: Path, tmp_path: Path) -> None:
    draw_finetuning(tmp_path / "finetuning.png", finetuning)
    assert_drawn(tmp_path / "finetuning.png")


@pytest.mark.slow
def test_the_other_figures(tables: tuple[Path, Path], tmp_path: Path) -> None:
    draw_costs(comparison_results(tables[0]), tmp_path / "costs.png")
    draw_curves(tmp_path / "curves.png", tables[1])
    draw_mixing(tmp_path / "mixing.png", tables[1])
    for name in ("costs", "curves", "mixing"):
        assert_drawn(tmp_path / f"{name}.png")


def test_a_missing_run_leaves_out_its_figure(tmp_path: Path) -> None:
    draw_mixing(tmp_path / "mixing.png", tmp_path / "missing.csv")
    draw_curves(tmp_path / "curves.png", tmp_path / "missing.csv")
    upgrade = next(case for case in CASES if case.group == "upgrade")
    draw_costs([evidence.Result(upgrade, {0: 0.5}, 1, 1, 1.0)], tmp_path / "costs.png")
    assert not list(tmp_path.iterdir())
    assert evidence.finetuning_results(tmp_path / "missing.csv") == {}
