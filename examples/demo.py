"""Fine-tune a pretrained network and compare it with training from scratch, in a few minutes on two cores: `make demo`.

The demo loads an ACmix network, pretrained on small photographs, through torch.hub and fine-tunes it with a recipe on
photographs of five kinds of clothing. It trains the same network from scratch for as many epochs, loads the saved
weight folder, evaluates it, writes a report, and classifies single images from the command line. It works offline.

The photographs in clothing.zip are a sample of https://github.com/alexeygrigorev/clothing-dataset-small (CC0).
"""

from __future__ import annotations

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from zipfile import ZipFile

import torch
from rich.table import Table
from timm.data import create_transform, resolve_data_config
from torch import Tensor, nn

import acmix_zoo
from acmix_zoo.data import load_image
from acmix_zoo.data.contact_sheet import write_contact_sheet
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.training.plots import plot_confusion
from acmix_zoo.weights import read_config
from examples.demo_page import plot_comparison, read_metrics, write_html
from examples.demo_steps import (
    acmix_zoo_command,
    console,
    fit_command,
    new_folder,
    print_end,
    print_heading,
    print_text,
)

ROOT = Path(acmix_zoo.__file__).resolve().parent.parent
FOLDER = Path("runs/demo")
MODEL = "acmix_resnet_nano"
RECIPE = ROOT / "recipes" / "finetune" / "folder.yaml"
PHOTOGRAPHS = ROOT / "examples" / "clothing.zip"
OPTIONS = {"data.batch_size": 16, "trainer.max_epochs": 12, "trainer.log_every_n_steps": 5}  # for 250 images
RUNS = {"scratch": "from scratch", "finetuned": "fine-tuned"}


def main() -> None:
    """Run the demo with the recipes and weights of this clone.

    The results go to a new folder below the current directory: runs/demo, or runs/demo-2, runs/demo-3, … if there were
    earlier demos. Existing files are never changed or deleted.
    """
    started = time.perf_counter()
    if not RECIPE.is_file():
        sys.exit(f"{RECIPE} does not exist. The demo needs a clone of the repository: run `make demo` there.")
    folder = new_folder(FOLDER)
    print_text(f"The results go to {folder}")

    print_heading("Load a pretrained network through torch.hub")
    model = torch.hub.load(str(ROOT), MODEL, source="local", pretrained=True).eval()
    print_text(f"torch.hub.load(…, '{MODEL}', source='local', pretrained=True): {complexity(model)}")
    print_text(f"Its weights, checkpoints/{pretrained_name(model)}, were trained on {describe_training(model)}")

    print_heading("Unpack a small folder of photographs with new classes")
    with ZipFile(PHOTOGRAPHS) as archive:
        archive.extractall(folder)
    photographs = folder / PHOTOGRAPHS.stem
    names = sorted(path.name for path in (photographs / "train").iterdir())
    test = sorted((photographs / "test").glob("*/*.jpg"))
    truth = torch.tensor([names.index(path.parent.name) for path in test])
    print_text(f"{photographs}: {len(names)} classes: {', '.join(names)}\n{describe_images(photographs)}")

    for run, label in RUNS.items():
        print_heading(f"Train with the recipe: {label}")
        fit(folder, run, pretrained=run == "finetuned")

    print_heading("Load the saved weight folder, evaluate it and write a report")
    weights = folder / "finetuned" / "weights"
    probabilities = predict(acmix_zoo.create_model(weights).eval(), test)
    measured, recorded = accuracy(probabilities, truth), test_accuracy(weights)
    if abs(measured - recorded) > 1.5 / len(test):  # tolerate one image on the border between two classes
        raise RuntimeError(f"{weights} has a test accuracy of {measured:.4f}, but its record says {recorded:.4f}")
    metrics = {label: read_metrics(folder / run / "metrics.csv") for run, label in RUNS.items()}
    rows = [("", "test accuracy", "files")]
    for run, label in RUNS.items():
        rows.append((label, percent(test_accuracy(folder / run / "weights")), str(folder / run)))
    report = write_report(folder, rows, metrics, test, names, truth, probabilities)
    print_table(rows)

    print_heading("Classify single images with the saved weight folder, from the command line")
    acmix_zoo_command(["classify", str(test[0]), str(test[-1]), "--model", str(weights), "--top", "3"])
    print_end(started, f"Weights: {weights}\nNext, open the report: {report}")


def fit(folder: Path, run: str, pretrained: bool) -> None:
    """Train on the photographs.

    From scratch, all layers learn at the full rate, since smaller rates in the first layers would only slow them down.
    """
    options = {"config": RECIPE, "data.source": folder / PHOTOGRAPHS.stem, **OPTIONS, "run.folder": folder / run}
    if not pretrained:
        options |= {"model.pretrained": "false", "model.layer_decay": "null"}
    fit_command(options)


def predict(model: nn.Module, paths: Sequence[Path], batch: int = 128) -> Tensor:
    """Return the probabilities (N, classes) of image files, preprocessed as the model's configuration says."""
    transform = create_transform(**resolve_data_config(pretrained_cfg=model.pretrained_cfg))
    parts = []
    with torch.inference_mode():
        for start in range(0, len(paths), batch):
            images = torch.stack([transform(load_image(path)) for path in paths[start : start + batch]])  # (B, 3, H, W)
            parts.append(model(images).softmax(-1))
    return torch.cat(parts)


def accuracy(probabilities: Tensor, truth: Tensor) -> float:
    """Return the fraction of rows whose maximum is at the true class.

    Args:
        probabilities: (N, classes).
        truth: (N,).
    """
    return (probabilities.argmax(1) == truth).double().mean().item()


def test_accuracy(weights: Path) -> float:
    """Return the test accuracy that the run wrote into its weight folder."""
    metrics = read_config(weights)["acmix_zoo"]["metrics"]
    return float(next(m["value"] for m in metrics if m["split"] == "test" and m["name"] == "top1"))


def pretrained_name(model: nn.Module) -> str:
    """Return `architecture.tag` of the weights that a model was created with."""
    return f"{MODEL}.{model.pretrained_cfg['tag']}"  # type: ignore[index]


def describe_training(model: nn.Module) -> str:
    """Return the dataset and the test accuracy from the record of shipped weights."""
    record = read_config(ROOT / "checkpoints" / pretrained_name(model))["acmix_zoo"]
    results = [m for m in record["metrics"] if m["split"] == "test" and m["name"] == "top1"]
    return ", ".join(f"{m['dataset']} (test accuracy {percent(m['value'])})" for m in results)


def describe_images(photographs: Path) -> str:
    """Return how many images each split has."""
    counts = (f"{len(list((photographs / split).glob('*/*.jpg')))} in {split}/" for split in ("train", "val", "test"))
    return f"Photographs: {', '.join(counts)}"


def percent(value: float) -> str:
    """Format 0.9312 as "93.12 %"."""
    return f"{100 * value:.2f} %"


def print_table(rows: Sequence[Sequence[str]]) -> None:
    """Print a table whose header is the first row."""
    table = Table()
    for i, name in enumerate(rows[0]):
        table.add_column(name, justify="right" if i == 1 else "left", overflow="fold")
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
    """Write a report with the curves of both runs and the fine-tuned network's predictions, and return its path."""
    plots = folder / "plots"
    plots.mkdir()
    predicted = probabilities.argmax(1)
    counts = torch.zeros(len(names), len(names), dtype=torch.int64)
    counts.index_put_((truth, predicted), torch.ones_like(truth), accumulate=True)
    wrong = (predicted != truth).nonzero().flatten()
    right = (predicted == truth).nonzero().flatten()
    shown = [*right[:: max(1, len(right) // 16)][:16].tolist(), *wrong[:: max(1, len(wrong) // 16)][:16].tolist()]
    classes, confidence = predicted.tolist(), probabilities.amax(1).tolist()
    titles = [f"{100 * confidence[i]:.0f} %  {names[classes[i]]}\ntrue: {names[int(truth[i])]}" for i in shown]
    good = [bool(predicted[i] == truth[i]) for i in shown]
    colors = ["green" if is_right else "red" for is_right in good]
    epochs = OPTIONS["trainer.max_epochs"]
    text = "\n".join(
        (
            describe_images(folder / PHOTOGRAPHS.stem),
            f"Both runs follow recipes/finetune/{RECIPE.name} for {epochs} epochs and keep the best one on validation.",
            f"The fine-tuned run starts from the pretrained weights of {MODEL}.",
            "Its first layers learn more slowly than its last.",
        )
    )
    return write_html(
        folder / "report.html",
        f"{MODEL} on photographs of clothing",
        [
            ("", rows),
            ("", text),
            ("Training", plot_comparison(metrics, plots / "curves.png")),
            (
                "Confusion matrix of the fine-tuned network",
                plot_confusion(counts.numpy(), names, plots / "confusion.png"),
            ),
            (
                f"{sum(good)} test images with the right class, and {len(good) - sum(good)} of those with a wrong one",
                write_contact_sheet(plots / "images.png", (load_image(paths[i]) for i in shown), titles, colors),
            ),
        ],
    )


if __name__ == "__main__":
    main()
