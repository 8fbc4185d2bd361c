"""The main job, end to end, in a few minutes on two cores and without a network: `make demo`.

A pretrained ACmix network comes through torch.hub, is fine-tuned by a Lightning recipe on a folder of images of classes
it has never seen, a few of each, and is compared with the same network trained from scratch on the same budget. The
saved weight folder is loaded back, evaluated, pictured in a report, and used on single images by the command line.
"""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch
from rich.console import Console
from rich.table import Table
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import acmix_zoo
from acmix_zoo.data import export_folder, load_image
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.training.plots import plot_confusion, plot_images
from acmix_zoo.training.report import plot_comparison, read_metrics, write_html
from acmix_zoo.weights import read_config

ROOT = Path(acmix_zoo.__file__).resolve().parent.parent
FOLDER = Path("runs/demo")
MODEL = "acmix_resnet_pico"
RECIPE = ROOT / "recipes" / "finetune" / "folder.yaml"
PER_CLASS = {"train": 10, "val": 5, "test": 150}
# Few images want small batches and a higher rate than the recipe's; a mirrored digit is no digit.
BUDGET = {"data.batch_size": 16, "data.hflip": 0, "model.lr": 2e-3, "trainer.max_epochs": 15}
BUDGET["trainer.log_every_n_steps"] = 5  # there are 7 in an epoch
RUNS = {"scratch": "from scratch", "finetuned": "fine-tuned"}

console = Console(highlight=False)


def main() -> None:
    """Run the demo with the recipes and weights of this clone.

    The results are written to a new folder below the current directory: runs/demo, or runs/demo-2, runs/demo-3, … if
    there were earlier demos. Existing files are never changed or deleted.
    """
    started = time.perf_counter()
    if not RECIPE.is_file():
        sys.exit(f"{RECIPE} does not exist. The demo needs a clone of the repository: run `make demo` there.")
    folder = new_folder(FOLDER)
    say(f"The demo writes into {folder}")

    step("A pretrained network, through torch.hub")
    model = torch.hub.load(str(ROOT), MODEL, source="local", pretrained=True).eval()
    say(f"torch.hub.load(…, '{MODEL}', source='local', pretrained=True): {complexity(model)}")
    say(f"its weights, checkpoints/{pretrained_name(model)}, were trained on {trained_on(model)}")

    step("Other classes, few images of each: handwritten digits as a folder of class folders")
    digits = export_folder("digits", folder / "digits", per_class=PER_CLASS)
    test = sorted((digits / "test").glob("*/*.png"))
    names = sorted(folder.name for folder in (digits / "train").iterdir())
    truth = torch.tensor([names.index(path.parent.name) for path in test])
    say(f"{digits}: {len(names)} classes, " + ", ".join(f"{n} a class in {split}/" for split, n in PER_CLASS.items()))
    before = accuracy(predict(model, test), truth)

    for run, label in RUNS.items():
        step(f"Train by the recipe: {label}")
        fit(folder, run, pretrained=run == "finetuned")

    step("Load the saved weight folder, evaluate it, write the report")
    weights = folder / "finetuned" / "weights"
    probabilities = predict(acmix_zoo.create_model(weights).eval(), test)
    again, recorded = accuracy(probabilities, truth), test_accuracy(weights)
    if abs(again - recorded) > 1.5 / len(test):  # more than one image on the edge between two classes
        raise RuntimeError(f"{weights} gets {again:.4f} of the test images right, its record says {recorded:.4f}")
    metrics = {label: read_metrics(folder / run / "metrics.csv") for run, label in RUNS.items()}
    rows = [("", "test accuracy", "training images/s", "files")]
    rows.append(("before fine-tuning", percent(before), "", "checkpoints"))
    for run, label in RUNS.items():
        speed = sorted(row["images_per_second"] for row in metrics[label])[len(metrics[label]) // 2]
        rows.append((label, percent(test_accuracy(folder / run / "weights")), f"{speed:.0f}", f"{folder / run}"))
    report = write_report(folder, rows, metrics, test, names, truth, probabilities)
    print_table(rows)

    step("Classify single images with the saved folder, from the command line")
    acmix(["classify", str(weights), *(str(path) for path in (test[40], test[-60])), "--top", "3"])
    say(f"\nreport: {report}\nweights: {weights}\n{time.perf_counter() - started:.0f} s")


def new_folder(wanted: Path) -> Path:
    """Create and return `wanted`, or the first of `wanted`-2, `wanted`-3, … that does not exist yet."""
    folder, number = wanted, 1
    while True:
        try:
            folder.mkdir(parents=True)  # atomic: if two demos start together, one of them takes the next number
            return folder
        except FileExistsError:
            number += 1
            folder = wanted.with_name(f"{wanted.name}-{number}")


def step(text: str) -> None:
    """Head of a part."""
    console.rule(f"[bold]{text}", align="left")


def say(text: str) -> None:
    """A plain line."""
    console.print(text, markup=False, soft_wrap=True)


def acmix(arguments: Sequence[str]) -> None:
    """Show a command of `acmix-zoo` and run it; the demo ends if it fails."""
    say(f"$ acmix-zoo {' '.join(arguments)}")
    code = subprocess.run([sys.executable, "-m", "acmix_zoo.cli", *arguments]).returncode
    if code:
        sys.exit(code)


def fit(folder: Path, run: str, pretrained: bool) -> None:
    """Train on the digits. From scratch every layer learns at the full rate: a smaller one would only slow it."""
    options = {"config": RECIPE, "data.source": folder / "digits", **BUDGET, "run.folder": folder / run}
    if not pretrained:
        options |= {"model.pretrained": "false", "model.layer_decay": "null"}
    acmix(["fit", *(word for name, value in options.items() for word in (f"--{name}", str(value)))])


def predict(model: nn.Module, paths: Sequence[Path], batch: int = 128) -> Tensor:
    """Probabilities (N, classes) of image files, prepared as the model's own cfg says."""
    transform = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), batch):
            images = torch.stack([transform(load_image(path)) for path in paths[start : start + batch]])  # (B, 3, H, W)
            parts.append(model(images).softmax(-1))
    return torch.cat(parts)


def accuracy(probabilities: Tensor, truth: Tensor) -> float:
    """Share of (N, classes) rows whose maximum is at truth (N,)."""
    return (probabilities.argmax(1) == truth).double().mean().item()


def test_accuracy(weights: Path) -> float:
    """What the run wrote into its weight folder."""
    metrics = read_config(weights)["acmix_zoo"]["metrics"]
    return float(next(m["value"] for m in metrics if m["split"] == "test" and m["name"] == "top1"))


def pretrained_name(model: nn.Module) -> str:
    """`architecture.tag` of the weights a model was created with."""
    return f"{MODEL}.{model.pretrained_cfg['tag']}"  # type: ignore[index]


def trained_on(model: nn.Module) -> str:
    """One line from the record of a shipped weight."""
    record = read_config(ROOT / "checkpoints" / pretrained_name(model))["acmix_zoo"]
    results = [m for m in record["metrics"] if m["split"] == "test" and m["name"] == "top1"]
    return ", ".join(f"{m['dataset']} ({percent(m['value'])} of the test images right)" for m in results)


def percent(value: float) -> str:
    """0.9312 → "93.1 %"."""
    return f"{100 * value:.1f} %"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """The first row is the head."""
    table = Table()
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i in (1, 2) else "left", overflow="fold")
    for row in rows[1:]:
        table.add_row(*row)
    console.print(table)


def write_report(
    folder: Path,
    rows: Sequence[Sequence[str]],
    metrics: dict[str, list[dict[str, float]]],
    paths: Sequence[Path],
    names: Sequence[str],
    truth: Tensor,
    probabilities: Tensor,
) -> Path:
    """Curves of both runs, and what the fine-tuned network gets right and wrong on the test images."""
    pictures = folder / "pictures"
    pictures.mkdir()
    predicted = probabilities.argmax(1)
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
    wrong = (predicted != truth).nonzero().flatten()
    right = (predicted == truth).nonzero().flatten()
    shown = [*right[:: max(1, len(right) // 16)][:16].tolist(), *wrong[:: max(1, len(wrong) // 16)][:16].tolist()]
    answers, sure = predicted.tolist(), probabilities.amax(1).tolist()
    titles = [f"{names[answers[i]]} {100 * sure[i]:.0f} % (is {names[int(truth[i])]})" for i in shown]
    good = [bool(predicted[i] == truth[i]) for i in shown]
    n, budget = PER_CLASS, BUDGET["trainer.max_epochs"]
    text = f"""{n["train"]} images a class to learn from, {n["val"]} to choose the best epoch, {len(paths)} to test.
Both runs follow recipes/finetune/{RECIPE.name} for {budget} epochs.
The fine-tuned one starts from {MODEL}'s pretrained weights, and its first layers learn more slowly than its last."""
    return write_html(
        folder / "report.html",
        f"{MODEL} on handwritten digits",
        [
            ("", rows),
            ("", text),
            ("Training", plot_comparison(metrics, pictures / "curves.png")),
            ("Confusion matrix, fine-tuned", plot_confusion(counts.numpy(), names, pictures / "confusion.png")),
            (
                "Some test images",
                plot_images([load_image(paths[i]) for i in shown], titles, pictures / "images.png", good),
            ),
        ],
    )


if __name__ == "__main__":
    main()
