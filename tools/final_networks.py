"""Evaluate the weights for photographs on their test set: accuracy by image size, calibration and confusion matrix.

    python -m tools.final_networks TINY_IMAGENET docs/images

TINY_IMAGENET is the Hub id zh-plus/tiny-imagenet or a folder with its parquet files. This writes the rows of
benchmarks/final_networks.csv and two figures, and takes some minutes. `make readme` writes the table of
docs/evidence.md.

Nothing may be chosen by these results, because they come from the test set.
"""

from __future__ import annotations

import itertools
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from matplotlib.figure import Figure  # not pyplot: no global state, no display
from torch import Tensor

from acmix_zoo import create_model
from acmix_zoo.data import ImageDataModule
from acmix_zoo.training.plots import plot_confusion
from acmix_zoo.weights import read_config
from acmix_zoo.weights.fetch import weight_folder
from tools import append_rows, make_parser, read_table

TABLE = Path("benchmarks/final_networks.csv")
WEIGHTS = ("acmix_resnet_nano.tiny_imagenet", "acmix_swin_nano.tiny_imagenet")  # the figures are of the first
SIZES = (64, 96, 128)  # pixels; the first is the training size
BINS = 15


class Calibration(NamedTuple):
    """Predictions in bins of equal width of their confidence, which is the probability of the predicted class.

    Attributes:
        counts: (BINS,) number of images.
        confidence: (BINS,) their mean confidence; 0 in empty bins.
        accuracy: (BINS,) the fraction of them that is classified correctly; 0 in empty bins.
    """

    counts: Tensor
    confidence: Tensor
    accuracy: Tensor

    @property
    def error(self) -> float:
        """The expected calibration error: the mean difference of confidence and accuracy over all images."""
        gaps = (self.confidence - self.accuracy).abs()
        return float((self.counts * gaps).sum() / self.counts.sum())


def calibrate(logits: Tensor, classes: Tensor) -> Calibration:
    """Sort predictions into bins of their confidence.

    Args:
        logits: (N, C).
        classes: (N,) true classes.
    """
    confidence, predicted = logits.double().softmax(1).max(1)
    bins = (confidence * BINS).long().clamp(max=BINS - 1)  # (N,)
    counts = torch.bincount(bins, minlength=BINS)
    sums = [torch.bincount(bins, each.double(), minlength=BINS) for each in (confidence, predicted == classes)]
    return Calibration(counts, *(each / counts.clamp(min=1) for each in sums))


def predict(folder: Path, source: str, size: int) -> tuple[Tensor, Tensor, list[str]]:
    """Return the logits (N, C) of all test images, their classes (N,), and the names of the classes.

    Args:
        folder: a weight folder.
        source: the data set that it was trained on.
        size: side length of the images in pixels.
    """
    config = read_config(folder)
    config["pretrained_cfg"] |= {"input_size": (3, size, size)}
    data = ImageDataModule.for_weights(source, config)
    data.setup("test")
    model: Any = create_model(str(folder)).eval().to(memory_format=torch.channels_last)
    logits, classes = [], []
    with torch.inference_mode():
        for images, labels in data.test_dataloader():
            logits.append(model(images.contiguous(memory_format=torch.channels_last)))
            classes.append(labels)
    return torch.cat(logits), torch.cat(classes), list(data.class_names)


def measure(logits: Tensor, classes: Tensor) -> dict[str, str]:
    """Return the accuracies and the calibration error, as columns of the table."""
    ranked = logits.topk(5).indices == classes[:, None]  # (N, 5)
    scores = {"top1": ranked[:, 0], "top5": ranked.any(1)}
    columns = {name: f"{float(hits.double().mean()):.4f}" for name, hits in scores.items()}
    return {**columns, "calibration_error": f"{calibrate(logits, classes).error:.4f}", "images": str(len(classes))}


def table(path: Path = TABLE) -> list[list[str]]:
    """Return the rows of the table of docs/evidence.md, one for each image size of each network."""
    rows = [["weights", "image size", "top-1", "top-5", "calibration error"]]
    for row in read_table(path):
        size = f"{row['size']} pixels{', as in training' if int(row['size']) == SIZES[0] else ''}"
        scores = [f"{100 * float(row[name]):.2f} %" for name in ("top1", "top5", "calibration_error")]
        rows.append([f"`{row['weights']}`", size, *scores])
    return rows


def draw_calibration(found: Calibration, path: Path) -> None:
    """Draw accuracy against confidence, and the number of images in each bin."""
    figure = Figure(figsize=(10, 4.2), layout="constrained")
    reliability, histogram = figure.subplots(1, 2)
    edges = np.arange(BINS) / BINS
    filled = found.counts > 0
    reliability.bar(edges, found.accuracy, 1 / BINS, align="edge", edgecolor="white", label="accuracy")
    reliability.plot(found.confidence[filled], found.confidence[filled], "k--", label="perfect calibration")
    reliability.set(xlabel="confidence", ylabel="accuracy", xlim=(0, 1), ylim=(0, 1))
    reliability.set_title(f"expected calibration error {100 * found.error:.2f} %")
    reliability.legend()
    histogram.set_title("images by confidence")
    histogram.bar(edges, found.counts, 1 / BINS, align="edge", edgecolor="white")
    histogram.set(xlabel="confidence", ylabel="images", xlim=(0, 1))
    figure.savefig(path, dpi=110)


def main(source: str, figures: Path) -> None:
    """Evaluate the weights at all sizes, and replace the table and the figures."""
    rows = []
    for weights, size in itertools.product(WEIGHTS, SIZES):
        logits, classes, names = predict(weight_folder(weights), source, size)
        rows.append({"weights": weights, "size": size, **measure(logits, classes)})
        print(rows[-1], flush=True)
        if (weights, size) == (WEIGHTS[0], SIZES[0]):
            draw_calibration(calibrate(logits, classes), figures / "evidence_calibration.png")
            counts = torch.zeros(len(names), len(names), dtype=torch.int64)
            counts.index_put_((classes, logits.argmax(1)), torch.ones_like(classes), accumulate=True)
            plot_confusion(counts.numpy(), names, figures / "evidence_confusion.png")
    TABLE.unlink(missing_ok=True)
    append_rows(TABLE, rows)


if __name__ == "__main__":
    parser = make_parser("final_networks", __doc__)
    parser.add_argument("source", metavar="TINY_IMAGENET")
    parser.add_argument("figures", type=Path, metavar="FOLDER", help="where to write the figures")
    given = parser.parse_args()
    main(given.source, given.figures)
