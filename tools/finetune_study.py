"""Measure the benefit of pretrained weights on photographs: test accuracy against the number of training images.

    python -m tools.finetune_study CLOTHING FOLDER            # all missing runs, about five core-hours
    python -m tools.finetune_study CLOTHING FOLDER --list     # print the runs and their state, train nothing

CLOTHING is the folder of the clothing photographs (train/, validation/ and test/ with ten classes), and FOLDER receives
the run folders. Every run is one `acmix-zoo fit` with a shipped recipe, whose record adds a row to
benchmarks/finetuning.csv. An interrupted run is resumed by the same command.

The training images of a run are drawn by its seed, the same for all starts. Runs on fewer images have more epochs.
"""

from __future__ import annotations

import random
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tools import make_parser, read_table
from tools.fit_runs import metric_on_test, train_missing

TABLE = Path("benchmarks/finetuning.csv")
SIZE = 96  # pixels; the photographs' shorter side is 128
EPOCHS = {5: 60, 20: 40, 100: 20, 0: 10}  # by training images per class; 0 for all
SEEDS = (0, 1, 2)
NANO = "acmix_resnet_nano"
# Options of each start. There are no Fashion-MNIST weights for the nano, so that start has a different network. From
# scratch, all layers learn at the full rate, since smaller rates in the first layers would only slow them down.
STARTS = {
    "scratch": ["--model.model", NANO, "--model.pretrained", "false", "--model.layer_decay", "null"],
    "fashion_mnist": ["--model.model", "acmix_resnet_pico", "--model.pretrained", "fashion_mnist"],
    "tiny_imagenet": ["--model.model", NANO, "--model.pretrained", "tiny_imagenet"],
}
RECIPES = {"full": "finetune/folder", "linear": "finetune/linear_probe"}


class Run(NamedTuple):
    """One run of the study.

    Attributes:
        start: a key of `STARTS`.
        mode: a key of `RECIPES`.
        per_class: training images per class; 0 for all.
        seed: draws the images, and seeds the training.
    """

    start: str
    mode: str
    per_class: int
    seed: int

    @property
    def name(self) -> str:
        return f"{self.start}-{self.mode}-{self.per_class or 'all'}-seed{self.seed}"


# A linear probe of random features would not be a useful baseline.
RUNS = [
    Run(start, mode, per_class, seed)
    for seed, per_class, start, mode in product(SEEDS, EPOCHS, STARTS, RECIPES)
    if (start, mode) != ("scratch", "linear")
]


def make_images(source: Path, folder: Path, per_class: int, seed: int) -> Path:
    """Link `per_class` training images of each class, and all other images, into a folder, and return it."""
    target = folder / f"{per_class or 'all'}-{seed}"
    if target.is_dir():
        return target
    draw, new = random.Random(seed), target.with_name(target.name + ".new")
    for split in ("train", "validation", "test"):
        for class_folder in sorted((source / split).iterdir()):
            images = sorted(class_folder.iterdir())
            if split == "train" and per_class:
                images = sorted(draw.sample(images, min(per_class, len(images))))
            (new / split / class_folder.name).mkdir(parents=True, exist_ok=True)
            for image in images:
                link = new / split / class_folder.name / image.name
                link.unlink(missing_ok=True)
                link.symlink_to(image.resolve())
    return new.rename(target)


def command(run: Run, images: Path, folder: Path) -> list[str]:
    """Return the arguments of `acmix-zoo` that train a run."""
    return [
        "fit", "--config", RECIPES[run.mode], "--data.source", str(images), "--data.image_size", str(SIZE),
        "--data.augment", "crop", "--data.crop_scale", "[0.35, 1.0]", *STARTS[run.start],
        "--trainer.max_epochs", str(EPOCHS[run.per_class]), "--seed_everything", str(run.seed),
        "--data.seed", str(run.seed), "--trainer.enable_progress_bar", "false", "--run.folder", str(folder),
    ]  # fmt: skip


def table_row(run: Run, record: dict[str, Any]) -> dict[str, str | int | float]:
    """Return the row of a finished run, given the record of its weights."""
    top1, images = metric_on_test(record, "top1"), record["dataset"]["splits"]["train"]
    minutes, revision = record["minutes"], record["git_revision"]
    return {**run._asdict(), "images": images, "top1": top1, "minutes": minutes, "revision": revision}


def main(source: Path, folder: Path, *, is_list: bool) -> None:
    """Train the missing runs."""

    def arguments(run: Run, target: Path) -> list[str]:
        return command(run, make_images(source, folder / "images", run.per_class, run.seed), target)

    done = {Run(r["start"], r["mode"], int(r["per_class"]), int(r["seed"])) for r in read_table(TABLE)}
    train_missing(RUNS, done, folder, TABLE, arguments=arguments, row=table_row, is_list=is_list)


if __name__ == "__main__":
    parser = make_parser("finetune_study", __doc__)
    parser.add_argument("source", type=Path, metavar="CLOTHING")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="print the runs and their state")
    given = parser.parse_args()
    main(given.source, given.folder, is_list=given.list)
