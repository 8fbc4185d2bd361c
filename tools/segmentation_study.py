"""Compare the paths of ACmix in segmentation: both, attention only and convolution only, on CamVid, three seeds each.

    python -m tools.segmentation_study CAMVID FOLDER            # all missing runs
    python -m tools.segmentation_study CAMVID FOLDER --list     # print the runs and their state, train nothing

CAMVID is the data set of recipes/segment/camvid.yaml, and FOLDER receives the run folders. Every run is one
`acmix-zoo fit` with a short form of that recipe, whose record adds a row to benchmarks/segmentation.csv. An interrupted
run is resumed by the same command. `make readme` writes the table of docs/segmentation.md.

The short form trains from scratch, on images of half the side length, with `acmix_resnet_pico` as the backbone. There
are no pretrained weights of the networks with one path, and those of both paths would favour the network with both.
"""

from __future__ import annotations

import statistics
from itertools import product
from pathlib import Path
from typing import Any, NamedTuple

from tools import make_parser, read_table
from tools.fit_runs import metric_on_test, train_missing
from tools.seeds import mean_and_spread, paired_difference

TABLE = Path("benchmarks/segmentation.csv")
PATHS = ("both", "attention", "convolution")
SEEDS = (0, 1, 2)
EPOCHS = 30
NOT_MEASURED = "Not measured yet. Run `python -m tools.segmentation_study`.\n"


class Run(NamedTuple):
    """One training.

    Attributes:
        paths: the argument of the network.
        seed: of the initial weights and of the augmentation.
    """

    paths: str
    seed: int

    @property
    def name(self) -> str:
        return f"{self.paths}-seed{self.seed}"


RUNS = [Run(paths, seed) for seed, paths in product(SEEDS, PATHS)]


def command(run: Run, source: Path, folder: Path) -> list[str]:
    """Return the arguments of `acmix-zoo` that train a run."""
    return [
        "fit", "--config", "segment/camvid", "--data.source", str(source), "--data.crop_size", "[112, 144]",
        "--data.resize", "[96, 192]", "--data.eval_resize", "120", "--model.model", "acmix_resnet_pico",
        "--model.model_kwargs", f"{{paths: {run.paths}}}", "--model.pretrained", "false",
        # Small rates in the lower layers suit pretrained weights.
        "--model.layer_decay", "null", "--trainer.max_epochs", str(EPOCHS), "--seed_everything", str(run.seed),
        "--data.seed", str(run.seed), "--trainer.enable_progress_bar", "false", "--run.folder", str(folder),
    ]  # fmt: skip


def table_row(run: Run, record: dict[str, Any]) -> dict[str, str | int | float]:
    """Return the row of a finished run, given the record of its weights."""
    scores = {name: metric_on_test(record, name) for name in ("miou", "pixel_accuracy")}
    costs = {name: record[name] for name in ("params", "macs", "minutes")}
    return {**run._asdict(), **scores, **costs, "revision": record["git_revision"]}


def table(path: Path = TABLE) -> list[list[str]]:
    """Return a row of the table for each network that has finished runs."""
    results = {paths: [row for row in read_table(path) if row["paths"] == paths] for paths in PATHS}
    scores = {paths: {int(row["seed"]): float(row["miou"]) for row in found} for paths, found in results.items()}
    rows = [["paths", "parameters", "minutes", "runs", "test mIoU", "difference"]]
    for paths, found in results.items():
        if found:
            parameters, runs = f"{int(found[0]['params']):,}", str(len(found))
            minutes = f"{statistics.mean(float(row['minutes']) for row in found):.0f}"
            difference = "" if paths == "both" else paired_difference(scores[paths], scores["both"])
            rows.append([paths, parameters, minutes, runs, mean_and_spread(scores[paths]), difference])
    return rows


def main(source: Path, folder: Path, *, is_list: bool) -> None:
    """Train the missing runs."""
    done = {Run(row["paths"], int(row["seed"])) for row in read_table(TABLE)}
    train_missing(
        RUNS, done, folder, TABLE, arguments=lambda run, target: command(run, source, target), row=table_row,
        is_list=is_list,
    )  # fmt: skip


if __name__ == "__main__":
    parser = make_parser("segmentation_study", __doc__)
    parser.add_argument("source", type=Path, metavar="CAMVID")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--list", action="store_true", help="print the runs and their state")
    given = parser.parse_args()
    main(given.source, given.folder, is_list=given.list)
