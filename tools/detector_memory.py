"""Measure the memory of training the detector of detect/coco_1x: the table of docs/detection.md.

    python -m tools.detector_memory benchmarks/detection.csv   # a few minutes on a quiet machine

It is measured with and without gradient checkpointing, in a process of its own with one thread. The process takes two
steps with AdamW on a batch of random images of the largest size, and the peak is that of the whole process. `make
readme` writes the table.
"""

from __future__ import annotations

import datetime
import os
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import yaml  # type: ignore[import-untyped]

from acmix_zoo.bench.memory import read_status
from acmix_zoo.bench.results import read_rows, write_csv
from acmix_zoo.weights.recipe_files import locate_recipe
from tools import make_parser

NOT_MEASURED = "Not measured yet. Run `python -m tools.detector_memory benchmarks/detection.csv`.\n"
RECIPE = "detect/coco_1x"
_CLASSES, _BOXES = 80, 7  # COCO's, and those of an average image


@dataclass(frozen=True)
class StepMemory:
    """What a training step of a recipe needs.

    Attributes:
        recipe: name of the recipe.
        detector, backbone: as in the recipe.
        checkpointing: whether the backbone's activations are recomputed in the backward pass.
        batch: images per step.
        height, width: of each image, in pixels.
        peak_mib: largest resident memory of the process.
        idle_mib: its resident memory before the network was built.
        threads: number of CPU threads.
        date: of the measurement.
    """

    recipe: str
    detector: str
    backbone: str
    checkpointing: int
    batch: int
    height: int
    width: int
    peak_mib: float
    idle_mib: float
    threads: int
    date: str


def measure(recipe: str, checkpointing: bool) -> StepMemory:
    """Take two training steps in this process. The peak is only that of the steps if the process did nothing else."""
    from acmix_zoo.data.boxes.box_dataset import BoxBatch
    from acmix_zoo.tasks.detection import DetectionTask

    torch.manual_seed(0)
    idle = read_status("VmRSS")
    settings = yaml.safe_load(locate_recipe(recipe).read_text(encoding="utf-8"))
    data, model = settings["data"], settings["model"]
    height, width, batch = data["image_size"], data["max_size"], data["batch_size"]
    options = {**model, "pretrained": False, "grad_checkpointing": checkpointing, "num_classes": _CLASSES}
    task = DetectionTask(**options, image_size=height, max_size=width).train()
    optimizer = torch.optim.AdamW(task.model.parameters(), model["lr"])
    images = BoxBatch(
        [torch.rand(3, height, width) for _ in range(batch)],
        [_target(height, width, data.get("masks", False)) for _ in range(batch)],
    )
    for _ in range(2):  # the optimiser's averages exist from the end of the first step
        optimizer.zero_grad()
        task.batch_loss(images).backward()
        optimizer.step()
    return StepMemory(
        recipe, model["detector"], model["model"], int(checkpointing), batch, height, width,
        round(read_status("VmHWM"), 1), round(idle, 1), torch.get_num_threads(),
        datetime.date.today().isoformat(),
    )  # fmt: skip


def _target(height: int, width: int, has_masks: bool) -> dict[str, Any]:
    """Return random boxes of a quarter of the image's sides, with masks that fill them."""
    size = torch.tensor([width, height])
    corners = torch.rand(_BOXES, 2) * 0.75 * size  # (N, 2): left and top
    boxes = torch.cat([corners, corners + size / 4], 1)
    target = {"boxes": boxes, "labels": torch.randint(1, _CLASSES + 1, (_BOXES,))}
    if has_masks:
        masks = torch.zeros(_BOXES, height, width, dtype=torch.uint8)
        for mask, (left, top, right, bottom) in zip(masks, boxes.int().tolist(), strict=True):
            mask[top:bottom, left:right] = 1
        target["masks"] = masks
    return target


def table(file: Path) -> list[list[str]]:
    """Return a row for each measurement."""
    rows = [["recipe", "network", "batch", "gradient checkpointing", "peak memory"]]
    for row in read_rows(file, StepMemory):
        network = f"{row.detector} on `{row.backbone}`"
        batch = f"{row.batch} × {row.height}×{row.width}"
        checkpointing, peak = "yes" if row.checkpointing else "no", f"{row.peak_mib / 1024:.1f} GiB"
        rows.append([f"`{row.recipe}`", network, batch, checkpointing, peak])
    return rows


if __name__ == "__main__":
    parser = make_parser("detector_memory", __doc__)
    parser.add_argument("file", type=Path, help="CSV file for the results")
    parser.add_argument("--only", type=int, metavar="CHECKPOINTING", help="measure one row (0 or 1) in this process")
    arguments = parser.parse_args()
    if arguments.only is not None:
        write_csv([measure(RECIPE, bool(arguments.only))], arguments.file)
        sys.exit()
    found = []
    for checkpointing in ("0", "1"):
        part = arguments.file.with_suffix(".part.csv")
        command = [sys.executable, "-m", "tools.detector_memory", str(part), "--only", checkpointing]
        subprocess.run(command, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
        found += read_rows(part, StepMemory)
        part.unlink()
        print(found[-1], flush=True)
    write_csv(found, arguments.file)
