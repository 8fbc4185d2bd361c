"""The memory of training the COCO detector: a small step is measured, and the recorded rows fit the recipe."""

from __future__ import annotations

from pathlib import Path

import yaml

from acmix_zoo.bench.results import read_rows, write_csv
from acmix_zoo.weights.recipe_files import locate_recipe
from tools import detector_memory
from tools.detector_memory import RECIPE, StepMemory
from tools.speed_table import BENCHMARKS

SMALL = """
data: {image_size: 64, max_size: 96, batch_size: 1, masks: true}
model:
  {model: acmix_resnet_pico, detector: mask_rcnn, lr: 0.1, channels: 32, detector_kwargs: {box_batch_size_per_image: 8}}
"""


def test_a_step_is_measured(tmp_path: Path) -> None:
    (tmp_path / "small.yaml").write_text(SMALL)
    row = detector_memory.measure(str(tmp_path / "small.yaml"), checkpointing=True)
    assert 0 < row.idle_mib <= row.peak_mib and row.checkpointing == 1
    write_csv([row], tmp_path / "rows.csv")
    header, (_, network, batch, *_) = detector_memory.table(tmp_path / "rows.csv")
    assert network == "mask_rcnn on `acmix_resnet_pico`" and batch == "1 × 64×96" and len(header) == 5


def test_recorded_rows_are_those_of_the_recipe() -> None:
    settings = yaml.safe_load(locate_recipe(RECIPE).read_text(encoding="utf-8"))
    rows = read_rows(BENCHMARKS / "detection.csv", StepMemory)
    assert [row.checkpointing for row in rows] == [0, 1]
    for row in rows:
        assert (row.backbone, row.detector) == (settings["model"]["model"], settings["model"]["detector"])
        data = settings["data"]
        assert (row.batch, row.height, row.width) == (data["batch_size"], data["image_size"], data["max_size"])
        assert row.threads == 1 and row.peak_mib > row.idle_mib
    assert rows[1].peak_mib < rows[0].peak_mib
