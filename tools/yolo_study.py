"""Measure the cost and benefit of ACmix in the neck of a YOLO model: AP50 on blood cells at equal epochs, three seeds.

    python -m tools.yolo_study BCCD benchmarks/yolo.csv

BCCD is the folder of the complete data set. This trains yolo11n and yolov8n from scratch with Ultralytics' default
settings, plain and with ACmix (`write_yaml`). The epoch that is best on the validation split is evaluated on the test
split. Every run adds a row to the file. After an interruption, run the same command again to resume; finished runs are
not repeated. `make readme` writes the table of docs/drop-in.md.
"""

from __future__ import annotations

import datetime
import json
import os
import shutil
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from acmix_zoo.bench.results import read_rows
from acmix_zoo.data.boxes.objects import BoxCheck
from acmix_zoo.data.boxes.voc_source import read_annotation
from tools import append_rows, make_parser
from tools.seeds import mean_and_spread, paired_difference

CLASSES = ("WBC", "RBC", "Platelets")
MODELS = ("yolo11n", "yolov8n")
VARIANTS = ("plain", "neck")
SEEDS = (0, 1, 2)
SPLITS = ("train", "val", "test")
NOT_MEASURED = "Not measured yet. Run `python -m tools.yolo_study`.\n"


@dataclass(frozen=True)
class Result:
    """One training run.

    Attributes:
        model: name of the YOLO model and its scale.
        variant: "plain", or "neck" with ACmix in the neck.
        seed: of the initial weights and of the augmentation.
        epochs, image_size, batch: settings of the training.
        params: number of parameters.
        gmacs: 10⁹ MACs for an image of 640 pixels, as Ultralytics counts them.
        ap50, ap: average precision on the test split, at an IoU of 0.5 and averaged from 0.5 to 0.95; from 0 to 1.
        minutes: training time, summed over interruptions.
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
    """The settings that all runs of a study share, see `Result`."""

    epochs: int
    image_size: int
    batch: int


def write_data(source: Path, target: Path, limits: Mapping[str, int] | None = None) -> Path:
    """Write the blood cells, which are in Pascal VOC's layout, in the layout of Ultralytics.

    Args:
        source: folder with JPEGImages, Annotations and ImageSets/Main.
        target: folder to write. Existing files are overwritten.
        limits: number of images to use of each split; all by default.

    Returns:
        The path of the data set's yaml.
    """
    for split in SPLITS:
        names = (source / "ImageSets" / "Main" / f"{split}.txt").read_text(encoding="utf-8").split()
        for kind in ("images", "labels"):
            (target / kind / split).mkdir(parents=True, exist_ok=True)
        for name in names[: limits[split] if limits else None]:
            image = source / "JPEGImages" / f"{name}.jpg"
            shutil.copy(image, target / "images" / split)
            lines = _label_lines(source / "Annotations" / f"{name}.xml", image)
            (target / "labels" / split / f"{name}.txt").write_text("\n".join(lines), encoding="utf-8")
    description = {"path": str(target.resolve()), "names": list(CLASSES), **{s: f"images/{s}" for s in SPLITS}}
    (target / "data.yaml").write_text(json.dumps(description), encoding="utf-8")  # JSON is YAML
    return target / "data.yaml"


def _label_lines(annotation: Path, image: Path) -> list[str]:
    """Return a line "class x y width height" for each usable box, in fractions of the image's sides."""
    record = read_annotation(annotation, image)
    assert record.size is not None
    classes = np.array([CLASSES.index(name) for name in record.names], np.int64)
    objects = BoxCheck().clean(record.objects._replace(classes=classes), record.size, image.name)
    boxes = objects.boxes / np.tile(np.array(record.size, np.float64), 2)  # (N, 4)
    places = np.hstack([(boxes[:, :2] + boxes[:, 2:]) / 2, boxes[:, 2:] - boxes[:, :2]])  # (N, 4)
    return [
        " ".join(map(str, (number, *place))) for number, place in zip(objects.classes, places.tolist(), strict=True)
    ]


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
        ap=round(float(metrics.box.map), 4), minutes=round(float(clock.read_text()) / 60, 2),
        threads=torch.get_num_threads(), ultralytics=__version__, date=datetime.date.today().isoformat(),
    )  # fmt: skip


def _is_finished(yolo: Any, options: dict[str, Any]) -> bool:
    """Return whether a training run that would be resumed was only interrupted before its evaluation.

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
        append_rows(file, [asdict(result)])
        print(result, flush=True)


def _settings(result: Result) -> Settings:
    return Settings(result.epochs, result.image_size, result.batch)


def table(file: Path) -> list[list[str]]:
    """Return a row for each model, variant and settings, with the difference of AP50 from the plain model.

    Differences are paired by seed, with a 95 % confidence interval.
    """
    rows = [
        ["model", "neck", "training", "parameters", "MACs at 640", "AP50", "AP50–95", "seeds", "difference of AP50"]
    ]
    groups: dict[tuple[str, Settings, str], list[Result]] = {}
    for result in read_rows(file, Result):
        groups.setdefault((result.model, _settings(result), result.variant), []).append(result)
    for (model, settings, variant), group in groups.items():
        ap50, ap = ({result.seed: getattr(result, name) for result in group} for name in ("ap50", "ap"))
        plain = {result.seed: result.ap50 for result in groups.get((model, settings, "plain"), [])}
        first, is_plain = group[0], variant == "plain"
        training = f"{settings.epochs} epochs at {settings.image_size}, batch {settings.batch}"
        rows.append(
            [
                f"`{model}`", "plain" if is_plain else "ACmix", training, f"{first.params:,}", f"{first.gmacs:.2f}G",
                mean_and_spread(ap50), mean_and_spread(ap), str(len(group)),
                "" if is_plain else paired_difference(ap50, plain),
            ]
        )  # fmt: skip
    return rows


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
