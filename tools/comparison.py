"""Train the networks of the comparison: each path alone and both, the neighbours that the paper names, and ablations.

    python -m tools.comparison TINY_IMAGENET FOLDER                 # all missing runs, about 34 core-hours
    python -m tools.comparison TINY_IMAGENET FOLDER --only paths --seeds 0
    python -m tools.comparison TINY_IMAGENET FOLDER --list          # print the runs and their state, train nothing
    python -m tools.comparison TINY_IMAGENET FOLDER --steps         # print how long steps take, train nothing

TINY_IMAGENET is the Hub id zh-plus/tiny-imagenet or a folder with its parquet files. FOLDER receives the run folders.
Every finished run adds a row to benchmarks/comparison.csv and its epochs to benchmarks/comparison_epochs.csv. An
interrupted run is resumed by the same command.

All runs have the same images. Except in the following groups, they also have the same recipe and number of steps. In
the group "time", networks with one path train for as long as those with both, and in "neighbours-time", the neighbours
train for as long as ACmix. The group "upgrade" starts from the
plain Swins of that group and trains them at half the learning rate for the same additional time, either unchanged or
converted to ACmix-Swins that compute the same logits.

The images are those of the first 100 classes of Tiny-ImageNet in the order of their WordNet ids, at 32 pixels. The
5,000 images of these classes in the published validation set are the test set, which is used once per run, with the
weights of the last epoch.
"""

from __future__ import annotations

import statistics
import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from torch import nn

from acmix_zoo import create_model
from acmix_zoo.data import ImageDataModule
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.models.silent_convolution import add_silent_convolution
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training import RunFolder
from acmix_zoo.training.environment import git_revision
from acmix_zoo.training.logs import quieten_lightning
from tools import append_rows, make_parser, read_table
from tools.ablations import ABLATIONS, build

CLASSES, SIDE, EPOCHS, BATCH = 100, 32, 10, 128
# With one path, a training step takes 0.87 to 0.94 times as long as with both: `--steps`, one thread, native kernel.
EQUAL_TIME_EPOCHS = 11
# The same ratio of step times, for fewer epochs, since the networks are already trained.
UPGRADE_EPOCHS = {"attention": 10, "both": 9}
OPTIMISER: dict[str, Any] = {
    "optimizer": "adamw",
    "lr": 2e-3,
    "weight_decay": 0.05,
    "warmup_epochs": 1.0,
    "label_smoothing": 0.1,
}
UPGRADE_LR = OPTIMISER["lr"] / 2
SEEDS = (0, 1, 2)
TABLE, EPOCHS_TABLE = Path("benchmarks/comparison.csv"), Path("benchmarks/comparison_epochs.csv")
PATHS = ("both", "attention", "convolution")
FAMILIES = ("resnet", "swin")  # with all three values of `paths`
PATH_FAMILIES = (*FAMILIES, "san")  # with at least two
NEIGHBOURS = ("resnet", "series_resnet", "se_resnet", "cbam_resnet", "bot_resnet", "aa_resnet", "container")
# As many epochs as take as long as ten of ACmix, by the step times. SE would have ten. CBAM and AA-ResNet would have
# fewer, and are already behind ACmix with ten.
NEIGHBOUR_EPOCHS = {"container": 9, "bot_resnet": 11, "resnet": 11, "series_resnet": 11}


class Case(NamedTuple):
    """A network of the comparison.

    Attributes:
        group: "paths", "time" (one path, trained as long as both), "upgrade" (a trained plain Swin, trained further
            unchanged or with both paths), "neighbours", "neighbours-time" (trained for as long as ACmix) or
            "ablations".
        network: its name in the zoo.
        variant: value of `paths`, a key of `ABLATIONS`, or "" for the network as it is.
    """

    group: str
    network: str
    variant: str = ""

    @property
    def name(self) -> str:
        suffix = {"time": "equal-time", "neighbours-time": "equal-time", "upgrade": "continued"}.get(self.group)
        return "-".join(filter(None, (self.network, self.variant, suffix)))

    @property
    def epochs(self) -> int:
        if self.group == "upgrade":
            return UPGRADE_EPOCHS[self.variant]
        if self.group == "neighbours-time":
            return NEIGHBOUR_EPOCHS[self.network.removesuffix("_pico")]
        return EQUAL_TIME_EPOCHS if self.group == "time" else EPOCHS

    def build(self) -> nn.Module:
        """Return the network, newly initialised."""
        if self.group == "ablations":
            return build(self.network, self.variant, num_classes=CLASSES)
        kwargs = {"paths": self.variant} if self.variant else {}
        return create_model(self.network, num_classes=CLASSES, **kwargs)


CASES = (
    *(Case("paths", f"acmix_{family}_pico", paths) for paths in PATHS for family in FAMILIES),
    *(Case("paths", "acmix_san_pico", paths) for paths in PATHS[:2]),  # attention alone is SAN, a neighbour
    *(Case("time", f"acmix_{family}_pico", paths) for paths in PATHS[1:] for family in FAMILIES),
    *(Case("upgrade", "acmix_swin_pico", paths) for paths in UPGRADE_EPOCHS),
    *(Case("neighbours", f"{name}_pico") for name in NEIGHBOURS),
    *(Case("neighbours-time", f"{name}_pico") for name in NEIGHBOUR_EPOCHS),
    # "none" is the network itself, which is among the paths
    *(Case("ablations", "acmix_resnet_pico", name) for name in ABLATIONS if name != "none"),
)
PLAIN_SWIN = Case("time", "acmix_swin_pico", "attention")
"""The network that the group "upgrade" starts from. It is trained first if its run folder is missing."""


class ComparisonTask(ClassificationTask):
    """A classifier whose network is a `Case`.

    Args:
        group, network, variant: the fields of the case. They are separate, so that checkpoints contain plain values.
        start: checkpoint of a trained plain Swin whose weights the network starts from, or "".
        options: arguments of `ClassificationTask`.
    """

    def __init__(self, group: str, network: str, variant: str, start: str = "", **options: Any) -> None:
        self.case, self.start = Case(group, network, variant), start
        super().__init__(network, num_classes=CLASSES, **options)

    def configure_models(self) -> None:
        self.model = self.case.build()
        if self.start:
            stored = torch.load(self.start, weights_only=True)["state_dict"]
            plain = {key.removeprefix("model."): value for key, value in stored.items()}
            self.model.load_state_dict(add_silent_convolution(plain, self.model))


class MixingHistory(Callback):
    """Add the mean alpha and beta of every layer with both paths to the metrics of an epoch."""

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        for layer, (alpha, beta) in enumerate(mixing_factors(pl_module)):
            pl_module.log_dict({f"val/alpha_{layer}": alpha, f"val/beta_{layer}": beta})


def mixing_factors(network: nn.Module) -> Iterator[tuple[float, float]]:
    """Return alpha and beta of every layer with both paths, from the input to the output."""
    for module in network.modules():
        alpha, beta = getattr(module, "alpha", None), getattr(module, "beta", None)
        if isinstance(alpha, nn.Parameter) and isinstance(beta, nn.Parameter):
            yield float(alpha.mean()), float(beta.mean())


def make_subset(source: str, folder: Path) -> Path:
    """Write the images of the first classes of Tiny-ImageNet to parquet files, and return their folder.

    Args:
        source: id of the data set, or the folder of its parquet files.
        folder: where to write. If the folder exists, it is returned unchanged.
    """
    from datasets import ClassLabel, load_dataset

    if folder.is_dir():
        return folder
    tables: Any = load_dataset(source)
    new = folder.with_name(folder.name + ".new")  # becomes the folder when it is complete
    new.mkdir(parents=True, exist_ok=True)
    split_names = {"train": "train", "validation": "valid" if "valid" in tables else "validation"}
    for split, name in split_names.items():
        names = tables[name].features["label"].names
        kept = sorted(names)[:CLASSES]
        new_label = {names.index(wordnet_id): label for label, wordnet_id in enumerate(kept)}
        labels = tables[name]["label"]
        subset = tables[name].select([i for i, label in enumerate(labels) if label in new_label])
        column = [new_label[label] for label in subset["label"]]
        subset = subset.remove_columns("label").add_column("label", column).cast_column("label", ClassLabel(names=kept))
        subset.to_parquet(new / f"{split}.parquet")
    return new.rename(folder)


def fit(case: Case, seed: int, source: Path, folder: Path) -> tuple[L.Trainer, RunFolder]:
    """Train one network, or continue its training, and return the trainer and the run folder."""
    options = dict(OPTIMISER)
    if case.group == "upgrade":
        _, plain = fit(PLAIN_SWIN, seed, source, folder.with_name(f"{PLAIN_SWIN.name}-seed{seed}"))
        options |= {"start": str(plain.last), "lr": UPGRADE_LR}
    L.seed_everything(seed, verbose=False)
    data = ImageDataModule(
        str(source), image_size=SIDE, batch_size=BATCH, val_fraction=0.05, validation_as_test=True, augment="crop",
        crop_scale=(0.35, 1.0), interpolation="bilinear", seed=seed,
    )  # fmt: skip
    task = ComparisonTask(*case, **options)
    run = RunFolder(str(folder))
    quieten_lightning()
    trainer = L.Trainer(
        max_epochs=case.epochs, accelerator="cpu", devices=1, logger=False, enable_progress_bar=False,
        enable_model_summary=False, callbacks=[run, MixingHistory()], gradient_clip_val=5.0,
    )  # fmt: skip
    trainer.fit(task, data, ckpt_path=str(run.last) if run.last.exists() else None)
    return trainer, run


def train(case: Case, seed: int, source: Path, folder: Path) -> tuple[dict[str, Any], list[dict[str, float]]]:
    """Train and test one network, and return its row of the table and one row per epoch."""
    trainer, run = fit(case, seed, source, folder)
    task: Any = trainer.lightning_module
    (scores,) = trainer.test(task, trainer.datamodule, verbose=False)  # type: ignore[attr-defined]
    cost = complexity(task.model, (3, SIDE, SIDE))
    minutes = sum(row["seconds"] for row in run.history) / 60
    row = {
        "group": case.group, "network": case.network, "variant": case.variant, "seed": seed,
        "parameters": cost.params, "macs": cost.macs,
        "top1": round(scores["test/top1"], 4), "top5": round(scores["test/top5"], 4),
        "loss": round(scores["test/loss"], 4), "minutes": round(minutes, 1), "revision": git_revision(),
    }  # fmt: skip
    return row, run.history


def finished(table: Path) -> set[tuple[str, int]]:
    """Return the (case name, seed) of the rows of a table."""
    rows = read_table(table)
    return {(Case(row["group"], row["network"], row["variant"]).name, int(row["seed"])) for row in rows}


def main(source: str, folder: Path, *, only: str | None, seeds: Sequence[int], is_list: bool) -> None:
    """Train the missing runs, seed by seed, so that the networks of an unfinished comparison have the same seeds."""
    done = finished(TABLE)
    cases = [case for case in CASES if only in (None, case.group)]
    for seed in seeds:
        for case in cases:
            run = folder / f"{case.name}-seed{seed}"
            if is_list:
                state = "finished" if (case.name, seed) in done else "started" if run.is_dir() else "not started"
                print(f"{run.name:<42} {state}")
                continue
            if (case.name, seed) in done:
                continue
            print(run.name, flush=True)
            row, epochs = train(case, seed, make_subset(source, folder / "images"), run)
            # The epochs first: a run in the main table counts as finished.
            if run.name not in {each["run"] for each in read_table(EPOCHS_TABLE)}:
                append_rows(EPOCHS_TABLE, [{"run": run.name, **epoch_columns(each)} for each in epochs])
            append_rows(TABLE, [row])


def print_step_times(rounds: int = 12) -> None:
    """Print the median time of a training step with both paths, with one, and of the neighbours, measured in turns."""
    images, labels = torch.randn(BATCH, 3, SIDE, SIDE), torch.randint(CLASSES, (BATCH,))
    families = [[case for case in CASES if case.group == "paths" and family in case.network] for family in FAMILIES]
    neighbours = [case for case in CASES if case.group == "neighbours"]
    for cases in (*families, [families[0][0], *neighbours]):
        networks = {case: case.build().train() for case in cases}
        seconds: dict[Case, list[float]] = {case: [] for case in cases}
        for turn in range(rounds + 2):
            for case, network in networks.items():
                start = time.perf_counter()
                nn.functional.cross_entropy(network(images), labels).backward()
                if turn >= 2:  # the first steps are slower
                    seconds[case].append(time.perf_counter() - start)
        medians = {case: statistics.median(own) for case, own in seconds.items()}
        for case, median in medians.items():
            print(f"{case.name:<32} {1000 * median:5.0f} ms, {median / medians[cases[0]]:.2f} of both", flush=True)


def epoch_columns(row: dict[str, float]) -> dict[str, str]:
    """Return an epoch's columns in the table. Alpha and beta list all layers, from the input to the output."""
    factors = {
        name: " ".join(f"{row[key]:.3f}" for key in row if key.startswith(f"val/{name}_")) for name in ("alpha", "beta")
    }
    scores = {name: f"{row[key]:.4f}" for name, key in (("train_loss", "train/loss"), ("val_top1", "val/top1"))}
    return {"epoch": f"{row['epoch']:.0f}", **scores, **factors}


if __name__ == "__main__":
    parser = make_parser("comparison", __doc__)
    parser.add_argument("source", metavar="TINY_IMAGENET")
    parser.add_argument("folder", type=Path, metavar="FOLDER")
    parser.add_argument("--only", choices=sorted({case.group for case in CASES}), help="train one group of networks")
    parser.add_argument("--seeds", type=int, nargs="+", default=SEEDS, help="seeds (default: 0 1 2)")
    parser.add_argument("--list", action="store_true", help="print the runs and their state")
    parser.add_argument("--steps", action="store_true", help="print how long a training step takes")
    given = parser.parse_args()
    if given.steps:
        print_step_times()
        sys.exit()
    main(given.source, given.folder, only=given.only, seeds=given.seeds, is_list=given.list)
