"""Measure what ACmix in the neck of a YOLO model costs and brings: AP50 on blood cells at equal epochs, three seeds.

    python -m tools.yolo_study ../shared/data/bccd benchmarks/yolo.csv

This trains yolo11n and yolov8n from scratch with Ultralytics' default settings, plain and with ACmix (`write_yaml`).
The epoch that is best on the validation split is evaluated on the test split. Every run adds a line to the file. Run
the same command again to resume after an interruption: runs in the file are not repeated. `make readme` writes the
table of docs/drop-in.md.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

import torch

from acmix_zoo.bench.results import read_rows, write_csv
from tools import make_parser

CLASSES = ("WBC", "RBC", "Platelets")
MODELS = ("yolo11n", "yolov8n")
VARIANTS = ("plain", "neck")
SEEDS = (0, 1, 2)
SPLITS = ("train", "val", "test")
NOT_MEASURED = "Not measured yet. Run `python -m tools.yolo_study`.\n"


@dataclass(frozen=True)
class Result:
    """One training.

    Attributes:
        model: name of the YOLO model and its scale.
        variant: "plain", or "neck" with ACmix in the neck.
        seed: of the initial weights and of the augmentation.
        epochs, image_size, batch: settings of the training.
        params: number of parameters.
        gmacs: 10⁹ MACs for an image of 640 pixels, as Ultralytics counts them.
        ap50, ap: average precision on the test split, at an IoU of 0.5 and averaged from 0.5 to 0.95; from 0 to 1.
        minutes: how long the training took, in one piece or several.
        threads: number of CPU threads.
        ultralytics: version.
        date: when the run finished.
    """

    model: str
    variant: str
    seed: int
    epochs: int
    image_size: int
    batch: int
    params: int
    gmacs: float
    ap50: float
    ap: float
    minutes: float
    threads: int
    ultralytics: str
    date: str


class Settings(NamedTuple):
    """What all runs of a study have in common, see `Result`."""

    epochs: int
    image_size: int
    batch: int


def write_data(source: Path, target: Path, limits: Mapping[str, int] | None = None) -> Path:
    """Write the blood cells, which are in Pascal VOC's layout, in the layout of Ultralytics.

    Args:
        source: folder with JPEGImages, Annotations and ImageSets/Main.
        target: folder to write. Files that exist are overwritten.
        limits: how many images of each split to take. All by default.

    Returns:
        The path of the data set's yaml.
    """
    for split in SPLITS:
        names = (source / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        for kind in ("images", "labels"):
            (target / kind / split).mkdir(parents=True, exist_ok=True)
        for name in names[: limits[split] if limits else None]:
            shutil.copy(source / "JPEGImages" / f"{name}.jpg", target / "images" / split)
            lines = _label_lines(source / "Annotations" / f"{name}.xml")
            (target / "labels" / split / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    description = {"path": str(target.resolve()), "names": list(CLASSES), **{s: f"images/{s}" for s in SPLITS}}
    (target / "data.yaml").write_text(json.dumps(description), encoding="utf-8")  # JSON is YAML
    return target / "data.yaml"


def _label_lines(annotation: Path) -> list[str]:
    """Return a line "class x y width height" for each box with an area, in fractions of the image's sides."""
    root = ElementTree.parse(annotation).getroot()
    width, height = (float(root.findtext(f"size/{side}", "0")) for side in ("width", "height"))
    lines = []
    for box in root.iter("object"):
        corners = ("xmin", "ymin", "xmax", "ymax")
        left, top, right, bottom = (float(box.findtext(f"bndbox/{corner}", "0")) for corner in corners)
        if right > left and bottom > top:
            centre = (left + right) / 2 / width, (top + bottom) / 2 / height
            sides = (right - left) / width, (bottom - top) / height
            lines.append(" ".join(map(str, (CLASSES.index(box.findtext("name", "")), *centre, *sides))))
    return lines


def train(model: str, variant: str, seed: int, settings: Settings, data: Path, folder: Path) -> Result:
    """Train a model, or resume its training, and evaluate it on the test split.

    Args:
        model, variant, seed, settings: see `Result`.
        data: the yaml of the data set.
        folder: the run folder.
    """
    from ultralytics import YOLO, __version__

    from acmix_zoo.integrations.ultralytics import write_yaml

    start = time.monotonic()
    last, clock = folder / "weights" / "last.pt", folder / "seconds.txt"
    before = float(clock.read_text()) if clock.exists() else 0.0
    folder.mkdir(parents=True, exist_ok=True)

    def save_seconds(trainer: Any) -> None:
        clock.write_text(f"{before + time.monotonic() - start:.1f}")

    if last.exists():
        yolo = YOLO(last)
        options: dict[str, Any] = {"resume": True}
    else:
        yolo = YOLO(f"{model}.yaml" if variant == "plain" else write_yaml(model, folder))
        options = dict(
            data=str(data), epochs=settings.epochs, imgsz=settings.image_size, batch=settings.batch, seed=seed,
            patience=0, workers=0, device="cpu", plots=False, verbose=False, project=str(folder.parent),
            name=folder.name, exist_ok=True,
        )  # fmt: skip
    yolo.add_callback("on_fit_epoch_end", save_seconds)
    if not _is_finished(yolo, options):
        yolo.train(**options)
    best = YOLO(folder / "weights" / "best.pt")
    metrics = best.val(
        data=str(data), split="test", imgsz=settings.image_size, batch=settings.batch, workers=0, device="cpu",
        plots=False, project=str(folder), name="test", exist_ok=True,
    )  # fmt: skip
    _, params, _, gflops = best.info(verbose=True)
    return Result(
        model=model, variant=variant, seed=seed, epochs=settings.epochs, image_size=settings.image_size,
        batch=settings.batch, params=params, gmacs=round(gflops / 2, 3), ap50=round(float(metrics.box.map50), 4),
        ap=round(float(metrics.box.map), 4), minutes=round(float(clock.read_text()) / 60, 1),
        threads=torch.get_num_threads(), ultralytics=__version__, date=datetime.date.today().isoformat(),
    )  # fmt: skip


def _is_finished(yolo: Any, options: dict[str, Any]) -> bool:
    """Return whether a training that would be resumed was only interrupted before its evaluation.

    Ultralytics removes the optimiser from a checkpoint at the end, and sets the epoch to -1.
    """
    return "resume" in options and yolo.ckpt.get("epoch", -1) < 0


def study(
    source: Path, file: Path, runs: Path, settings: Settings, models: Sequence[str], seeds: Sequence[int]
) -> None:
    """Train everything that the file does not contain yet."""
    data = write_data(source, runs / "data")
    for model, seed, variant in product(models, seeds, VARIANTS):
        rows = read_rows(file, Result) if file.exists() else []
        if any((r.model, r.variant, r.seed, *_settings(r)) == (model, variant, seed, *settings) for r in rows):
            continue
        folder = runs / f"{model}-{variant}-{seed}-{'-'.join(map(str, settings))}"
        result = train(model, variant, seed, settings, data, folder)
        write_csv([*rows, result], file)
        print(result, flush=True)


def _settings(result: Result) -> Settings:
    return Settings(result.epochs, result.image_size, result.batch)


def table(file: Path) -> list[list[str]]:
    """Return a row for each model and variant: its cost, and the mean and the spread of its average precision."""
    rows = [["model", "neck", "parameters", "MACs at 640", "AP50", "AP50–95", "seeds"]]
    results = read_rows(file, Result)
    for model, variant in dict.fromkeys((r.model, r.variant) for r in results):
        group = [r for r in results if (r.model, r.variant) == (model, variant)]
        scores = [_mean_and_spread([100 * getattr(r, name) for r in group]) for name in ("ap50", "ap")]
        neck = "ACmix" if variant == "neck" else "plain"
        rows.append([f"`{model}`", neck, f"{group[0].params:,}", f"{group[0].gmacs:.2f}G", *scores, str(len(group))])
    return rows


def _mean_and_spread(values: Sequence[float]) -> str:
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


if __name__ == "__main__":
    parser = make_parser("yolo_study", __doc__)
    parser.add_argument("source", type=Path, help="folder of the blood cells, in Pascal VOC's layout")
    parser.add_argument("file", type=Path, help="CSV file for the results")
    parser.add_argument("--runs", type=Path, default=Path("runs/yolo_study"), help="folder for data and run folders")
    parser.add_argument("--epochs", type=int, default=100)
    parser.add_argument("--image-size", type=int, default=320, help="side length in pixels")
    parser.add_argument("--batch", type=int, default=16)
    parser.add_argument("--models", nargs="+", default=MODELS)
    parser.add_argument("--seeds", nargs="+", type=int, default=SEEDS)
    arguments = parser.parse_args()
    # Ultralytics reads these when it is imported. Settings in the home folder would change results.
    arguments.runs.mkdir(parents=True, exist_ok=True)
    os.environ.setdefault("YOLO_CONFIG_DIR", str(arguments.runs.resolve()))
    os.environ.setdefault("YOLO_AUTOINSTALL", "false")
    found = Settings(arguments.epochs, arguments.image_size, arguments.batch)
    study(arguments.source, arguments.file, arguments.runs.resolve(), found, arguments.models, arguments.seeds)
