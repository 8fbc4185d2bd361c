"""A run's history, a row an epoch: as a table, and as a line for logs that show no progress bar."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path

Row = dict[str, float]


def write_csv(path: Path, history: Sequence[Row]) -> None:
    """Write the table; where that fails it is said and no error: checkpoints have the history, too."""
    names = list(dict.fromkeys(name for row in history for name in row))
    try:
        with path.with_suffix(".new").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, names)
            writer.writeheader()
            writer.writerows({name: f"{value:.6g}" for name, value in row.items()} for row in history)
        path.with_suffix(".new").replace(path)
    except OSError as error:  # the next epoch writes it again
        print(f"NOT WRITTEN, {path}: {error.strerror or error}. Free some space.", flush=True)


def score(row: Row) -> list[float]:
    """Return the value by which epochs are compared; the best epoch has the largest.

    The validation accuracy counts first, then the validation loss. Without any validation, the last epoch is the best.
    An epoch that diverged is the best only if all did.
    """
    if "val/top1" not in row:
        return [-1.0, row["epoch"]]
    return [row["val/top1"], -row["val/loss"]] if math.isfinite(row["val/loss"]) else [-2.0, 0.0]


def epoch_line(history: Sequence[Row], epochs: int, best: Sequence[float] | None) -> str:
    """Return a line about the last epoch.

    Args:
        history: a row for every epoch so far.
        epochs: of the whole run.
        best: the `score` of the epoch whose weights are kept as the best; None if none could be saved.
    """
    row = history[-1]
    left = row.get("speed/eta_minutes", (epochs - row["epoch"]) * row["seconds"] / 60)
    text = f"epoch {row['epoch']:.0f}/{epochs}: train loss {row.get('train/loss', float('nan')):.4f}"
    if "val/top1" in row:
        text += f", val loss {row['val/loss']:.4f}, val top-1 {100 * row['val/top1']:.2f} %"
        # of equal epochs the first one is kept
        kept = next((r for r in history if "val/top1" in r and score(r) == list(best or [])), None)
        if kept is not None:
            text += f" (best {100 * kept['val/top1']:.2f} in epoch {kept['epoch']:.0f})"
    text += f", {row['images_per_second']:.0f} images/s"
    if "speed/mfu" in row:
        text += f", MFU {100 * row['speed/mfu']:.1f} %"
    if epochs <= row["epoch"]:
        return text
    return f"{text}, {left:.0f} min left" if left >= 1 else f"{text}, {60 * left:.0f} s left"
