"""Plots of runs and results. Matplotlib is imported when the first plot is drawn, and needs no display."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from acmix_zoo.data.fonts import plot_fonts

_MOST_NAMES = 60  # along an axis of a confusion matrix


def _figure(width: float, height: float, layout: str | None = "constrained") -> Any:
    from matplotlib.figure import Figure  # not pyplot: no global state, no display

    return Figure(figsize=(width, height), layout=layout)  # type: ignore[arg-type]


def plot_curves(history: Sequence[dict[str, float]], path: str | Path, metrics: Mapping[str, str]) -> Path:
    """Draw loss, validation metrics and learning rate over the epochs of a run.

    Args:
        history: rows of metrics.csv, one per epoch.
        path: output file (.png, .svg or .pdf).
        metrics: the metrics to draw, between 0 and 1, with their labels.
    """
    figure = _figure(12, 3.5, layout=None)  # fixed margins, because a layout takes as long as the drawing
    margins = {"left": 0.055, "right": 0.99, "bottom": 0.15, "top": 0.91, "wspace": 0.25}
    loss, scores, rate = figure.subplots(1, 3, gridspec_kw=margins)
    epochs = [row["epoch"] for row in history]
    for axes, title, lines in (
        (loss, "loss", {"train/loss": "training (with augmentation)", "val/loss": "validation"}),
        (scores, "validation, %", {f"val/{name}": label for name, label in metrics.items()}),
        (rate, "learning rate", {"lr": ""}),
    ):
        percent = 100 if axes is scores else 1
        for name, label in lines.items():
            values = [percent * row.get(name, float("nan")) for row in history]
            if not np.all(np.isnan(values)):
                axes.plot(epochs, values, marker=".", label=label)
        if axes is not rate and axes.lines:
            axes.legend()
        axes.set(title=title, xlabel="epoch")
        axes.xaxis.get_major_locator().set_params(integer=True)
        axes.grid(alpha=0.3)
    figure.savefig(path, dpi=100)
    return Path(path)


def plot_learning_rates(
    rates: npt.ArrayLike,
    losses: npt.ArrayLike,
    smooth_losses: npt.ArrayLike,
    path: str | Path,
    current: float,
    suggested: float | None,
) -> Path:
    """Draw the loss over the learning rate, and mark two rates.

    Args:
        rates: (steps,) the learning rates that were tried.
        losses: (steps,) the loss of each step.
        smooth_losses: (steps,) the same without most of the noise.
        path: output file.
        current: the rate of the recipe or command.
        suggested: the rate that is suggested; None for none.
    """
    figure = _figure(7, 4)
    axes = figure.subplots()
    axes.plot(rates, losses, ".", color="0.7", label="one step")
    axes.plot(rates, smooth_losses, label="average of neighbouring steps")
    axes.axvline(current, color="0.4", linestyle=":", label=f"now: {current:g}")
    if suggested is not None:
        axes.axvline(suggested, color="tab:red", linestyle="--", label=f"suggested: {suggested:.2g}")
    axes.set(xscale="log", xlabel="learning rate (model.lr)", ylabel="training loss")
    smooth = np.asarray(smooth_losses)
    lowest, highest = smooth.min(), smooth[: max(1, len(smooth) // 2)].max()  # not the losses of a divergence
    margin = 0.2 * (highest - lowest) or 1.0
    axes.set_ylim(lowest - margin, highest + 2 * margin)
    axes.grid(alpha=0.3)
    axes.legend()
    figure.savefig(path, dpi=100)
    return Path(path)


def plot_confusion(matrix: npt.ArrayLike, class_names: Sequence[str], path: str | Path) -> Path:
    """Draw a confusion matrix. Colours show the fraction of each true class.

    Of more than 20 classes, a colour bar replaces the counts. Of more than 60, the axes have the numbers instead of the
    names, and colours change fastest near zero, so that single mistakes can be seen.

    Args:
        matrix: (classes, classes) counts, rows are the true classes.
        class_names: names of the classes, in order.
        path: output file.
    """
    from matplotlib.colors import PowerNorm

    counts = np.asarray(matrix)
    n = len(class_names)
    if counts.shape != (n, n):
        raise ValueError(f"plot_confusion: matrix has shape {counts.shape}. Expected ({n}, {n}) for {n} class names")
    fractions = counts / counts.sum(1, keepdims=True).clip(1)
    size = min(3 + 0.45 * n, 20) if n <= _MOST_NAMES else 12
    figure = _figure(size, size)
    axes = figure.subplots()
    image = axes.imshow(fractions, cmap="Blues", norm=PowerNorm(0.4 if n > _MOST_NAMES else 1, 0, 1))
    axes.set(xlabel="predicted", ylabel="true")
    if n <= _MOST_NAMES:
        # matplotlib would typeset text between two $ as a formula, and fail if it is not one
        style: dict[str, Any] = {"parse_math": False, "fontfamily": plot_fonts()}
        rotation, ha = (90, "center") if n > 10 else (45, "right")
        axes.set_xticks(range(n), class_names, rotation=rotation, ha=ha, **style)
        axes.set_yticks(range(n), class_names, **style)
    if n <= 20:
        for i, j in zip(*np.nonzero(counts), strict=True):
            axes.text(
                j, i, str(counts[i, j]), ha="center", va="center", color="white" if fractions[i, j] > 0.5 else "black"
            )
    else:
        figure.colorbar(image, shrink=0.6, label="fraction of the true class")
    figure.savefig(path, dpi=100)
    return Path(path)


def plot_speed(rows: Sequence[Any], path: str | Path) -> Path:
    """Draw time per image against MACs, one line per candidate, in one panel for inference and one for training.

    Args:
        rows: rows of `acmix_zoo.bench.measure.measure`.
        path: output file.
    """
    modes = sorted({row.mode for row in rows})
    figure = _figure(6.5 * len(modes), 4.5)
    names = list(dict.fromkeys(row.candidate for row in rows))
    for axes, mode in zip(figure.subplots(1, len(modes), squeeze=False).flat, modes, strict=True):
        for i, name in enumerate(names):
            found = sorted((r for r in rows if r.mode == mode and r.candidate == name), key=lambda r: r.macs)
            gigamacs = [row.macs / 1e9 for row in found]
            axes.plot(gigamacs, [row.ms / row.batch for row in found], "osD^vP*X"[i % 8], label=name, alpha=0.8)
        axes.set(title=mode, xlabel="GMACs per image", ylabel="ms per image")
        axes.set_xlim(0), axes.set_ylim(0)
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(path, dpi=100)
    return Path(path)
