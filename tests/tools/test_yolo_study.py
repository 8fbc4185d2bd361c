"""The study of ACmix in YOLO: it converts the data, resumes, skips what is recorded, and summarises the seeds."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.documents import ROOT
from support.ultralytics_process import DATA

from acmix_zoo.bench.results import read_rows, write_csv
from tools import yolo_study
from tools.yolo_study import Result, Settings

RESULT = Result("yolo11n", "plain", 0, 3, 64, 4, 2_590_000, 3.2, 0.8, 0.5, 1.5, 1, "8.4", "2026-11-26")


@pytest.fixture
def cells(tmp_path: Path) -> Path:
    """Write a data set of three images with a box each, and one more box without area."""
    source = tmp_path / "cells"
    for folder in ("JPEGImages", "Annotations", "ImageSets/Main"):
        (source / folder).mkdir(parents=True)
    for split in ("train", "val", "test"):
        (source / "ImageSets/Main" / f"{split}.txt").write_text(f"{split}_1\n")
        (source / "JPEGImages" / f"{split}_1.jpg").write_bytes(b"")
        box = "<xmin>20</xmin><ymin>10</ymin><xmax>60</xmax><ymax>30</ymax>"
        boxes = f"<object><name>RBC</name><bndbox>{box}</bndbox></object>" + (
            f"<object><name>WBC</name><bndbox>{box.replace('60', '20')}</bndbox></object>"
        )
        size = "<size><width>80</width><height>40</height></size>"
        (source / "Annotations" / f"{split}_1.xml").write_text(f"<annotation>{size}{boxes}</annotation>")
    return source


def test_boxes_become_fractions_and_boxes_without_area_are_left_out(cells: Path, tmp_path: Path) -> None:
    data = yolo_study.write_data(cells, tmp_path / "data")
    assert json.loads(data.read_text())["names"][1] == "RBC"
    for split in ("train", "val", "test"):
        # The first pixel of an image has the number 1 in Pascal VOC, so this box begins at (19, 9).
        place = (tmp_path / "data/labels" / split / f"{split}_1.txt").read_text()
        assert place == f"1 {39.5 / 80} {19.5 / 40} {41 / 80} {21 / 40}"
        assert (tmp_path / "data/images" / split / f"{split}_1.jpg").exists()


def test_recorded_runs_are_not_repeated(cells: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    trained = []

    def train(model: str, variant: str, seed: int, settings: Settings, data: Path, folder: Path) -> Result:
        trained.append((model, variant, seed))
        if len(trained) == 3:
            raise KeyboardInterrupt
        return replace(RESULT, model=model, variant=variant, seed=seed)

    monkeypatch.setattr(yolo_study, "train", train)
    arguments: Any = (cells, tmp_path / "r.csv", tmp_path / "runs", Settings(3, 64, 4), ["yolo11n"], [0, 1])
    with pytest.raises(KeyboardInterrupt):
        yolo_study.study(*arguments)
    yolo_study.study(*arguments)
    expected = [("yolo11n", variant, seed) for seed in (0, 1) for variant in ("plain", "neck")]
    assert trained == [*expected[:3], *expected[2:]]
    rows = read_rows(tmp_path / "r.csv", Result)
    assert [(row.model, row.variant, row.seed) for row in rows] == expected


def test_table_shows_mean_spread_and_paired_difference(tmp_path: Path) -> None:
    rows = [replace(RESULT, seed=seed, ap50=0.8 + 0.01 * seed, ap=0.5) for seed in range(3)]
    write_csv([*rows, replace(RESULT, variant="neck", seed=1, ap50=0.825)], tmp_path / "r.csv")
    _, plain, neck = yolo_study.table(tmp_path / "r.csv")
    cost = ["3 epochs at 64, batch 4", "2,590,000", "3.20G"]
    assert plain == ["`yolo11n`", "plain", *cost, "81.0 ± 1.0 %", "50.0 ± 0.0 %", "3", ""]
    assert neck[1:] == ["ACmix", *cost, "82.5 %", "50.0 %", "1", "+1.5"]


def test_runs_with_different_settings_are_not_averaged(tmp_path: Path) -> None:
    short = replace(RESULT, epochs=1, ap50=0.2)
    write_csv([RESULT, short, replace(short, variant="neck", ap50=0.3)], tmp_path / "r.csv")
    _, *rows = yolo_study.table(tmp_path / "r.csv")
    assert [(row[2], row[5], row[-1]) for row in rows] == [
        ("3 epochs at 64, batch 4", "80.0 %", ""),
        ("1 epochs at 64, batch 4", "20.0 %", ""),
        ("1 epochs at 64, batch 4", "30.0 %", "+10.0"),
    ]


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_it_trains_and_resumes(tmp_path: Path) -> None:
    """The second command resumes a run that was killed after its first epoch."""
    if importlib.util.find_spec("ultralytics") is None or not DATA.is_dir():
        pytest.skip(f"needs ultralytics, and {DATA}: set ACMIX_DATA to a folder with bccd/")
    source = tmp_path / "cells"
    (source / "ImageSets").mkdir(parents=True)
    shutil.copytree(DATA / "ImageSets/Main", source / "ImageSets/Main")
    for split in ("train", "val", "test"):
        names = (DATA / "ImageSets/Main" / f"{split}.txt").read_text().split()
        (source / "ImageSets/Main" / f"{split}.txt").write_text("\n".join(names[:4]))
    for folder in ("JPEGImages", "Annotations"):
        (source / folder).symlink_to(DATA / folder)
    options = ["--runs", "runs", "--epochs", "2", "--image-size", "64", "--batch", "2"]
    options += ["--models", "yolo11n", "--seeds", "0"]
    command = ["-m", "tools.yolo_study", str(source), "results.csv", *options]
    killed = f"""
import os, runpy, sys
sys.argv = {command[1:]!r}
from pathlib import Path
os.environ["YOLO_CONFIG_DIR"] = str(Path("runs").resolve())
from ultralytics.engine.trainer import BaseTrainer
save = BaseTrainer.save_model
def save_and_die(self):
    save(self)
    os._exit(9)
BaseTrainer.save_model = save_and_die
runpy.run_module("tools.yolo_study", run_name="__main__")
"""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "YOLO_OFFLINE": "true"}

    def run(*arguments: str) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [sys.executable, *arguments], cwd=tmp_path, capture_output=True, text=True, env=environment
        )

    (tmp_path / "runs").mkdir()
    done = run("-c", killed)
    assert done.returncode == 9, done.stderr
    assert not (tmp_path / "results.csv").exists()
    done = run(*command)
    assert done.returncode == 0, done.stderr
    assert "Resuming training" in done.stdout + done.stderr
    plain, neck = read_rows(tmp_path / "results.csv", Result)
    assert (plain.variant, neck.variant) == ("plain", "neck") and plain.params != neck.params
    assert all(0 <= row.ap50 <= 1 and row.gmacs > 0 and row.minutes > 0 for row in (plain, neck))
