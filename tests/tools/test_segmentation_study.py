"""The segmentation study trains each path in the same way, and compares them by seed."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")
pytest.importorskip("segmentation_models_pytorch")

from tools import append_rows, read_table, segmentation_study
from tools.segmentation_study import RUNS, Run, command, main, table


def test_commands_differ_in_paths_and_seed_only(tmp_path: Path) -> None:
    assert len({run.name for run in RUNS}) == len(RUNS) == 9
    for run in RUNS:
        words = command(run, tmp_path, tmp_path)
        changed = [word for word in words if word not in command(Run("both", 7), tmp_path, tmp_path)]
        expected = [] if run.paths == "both" else [f"{{paths: {run.paths}}}"]
        assert changed == [*expected, *[str(run.seed)] * 2]


def test_paths_are_compared_by_seed(tmp_path: Path) -> None:
    for seed in (0, 1, 2):
        for paths, miou in (("both", 0.4), ("attention", 0.3), ("convolution", 0.41)):
            row = {"paths": paths, "seed": seed, "miou": miou + seed / 10, "params": 1000, "minutes": 9}
            append_rows(tmp_path / "runs.csv", [row])
    _, *rows = table(tmp_path / "runs.csv")
    assert [(row[0], row[-2], row[-1]) for row in rows] == [
        ("both", "50.0 ± 10.0 %", ""),
        ("attention", "40.0 ± 10.0 %", "−10.0 [−10.0, −10.0]"),
        ("convolution", "51.0 ± 10.0 %", "+1.0 [+1.0, +1.0]"),
    ]


def test_there_is_no_row_without_runs(tmp_path: Path) -> None:
    assert len(table(tmp_path / "runs.csv")) == 1


@pytest.mark.slow
def test_a_run_is_recorded_and_not_repeated(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for split, count in (("train", 8), ("val", 2), ("test", 2)):
        for kind in ("images", "masks"):
            folder = tmp_path / "camvid" / kind / split
            folder.mkdir(parents=True)
            for i in range(count):
                pixels = np.random.default_rng(i).integers(0, 12, (120, 160), np.uint8)
                Image.fromarray(pixels).convert("RGB" if kind == "images" else "L").save(folder / f"{i}.png")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(segmentation_study, "EPOCHS", 1)
    monkeypatch.setattr(segmentation_study, "RUNS", [Run("attention", 1)])
    main(tmp_path / "camvid", tmp_path / "runs", is_list=False)
    (row,) = read_table(tmp_path / segmentation_study.TABLE)
    assert (row["paths"], row["seed"]) == ("attention", "1") and 0 < float(row["miou"]) < float(row["pixel_accuracy"])
    capfd.readouterr()
    main(tmp_path / "camvid", tmp_path / "runs", is_list=False)
    main(tmp_path / "camvid", tmp_path / "runs", is_list=True)
    assert capfd.readouterr().out.split() == ["attention-seed1", "finished"]
    assert len(read_table(tmp_path / segmentation_study.TABLE)) == 1
