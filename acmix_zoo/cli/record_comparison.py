"""Compare the metrics and weights of a reproduced training run with the record of the original one."""

from __future__ import annotations

import math
import shlex
from typing import Any

from acmix_zoo.cli.recorded_command import RUN_OPTIONS, Record, Target, split_options
from acmix_zoo.cli.text_table import print_columns

_ACCURACIES = ("top1", "top5")  # fractions of images
_OTHER_TOLERANCE = 0.02  # of scores that are made of many pixels or boxes per image, such as mIoU and mAP


def tolerance(metric: str, value: float, images: int) -> float:
    """Return the difference between two runs that chance explains: three binomial standard errors of an accuracy.

    Two training runs that differ only by chance (the order of sums, a different machine) misclassify different images.
    Chance does not explain a larger difference between their accuracies. One image is added to the correct and one to
    the wrong ones (Laplace's rule), so that a perfect accuracy has a standard error, too. Other metrics are allowed two
    percentage points.

    Args:
        metric: its name, such as "top1" or "miou".
        value: the metric, between 0 and 1. An accuracy is the fraction of images that are classified correctly.
        images: number of images.
    """
    if metric not in _ACCURACIES:
        return _OTHER_TOLERANCE
    p = (value * images + 1) / (images + 2)
    return 3 * math.sqrt(p * (1 - p) / images)


def print_comparison(target: Target, reproduced: Record, points: float | None = None) -> bool:
    """Print the recorded and the reproduced metrics side by side.

    Args:
        target: the reproduced training run. Its record has the expected metrics.
        reproduced: the record of the new weights.
        points: allowed difference in percentage points. By default, that of `tolerance`.

    Returns:
        Whether all metrics are within the tolerance.
    """
    scores = {(m["split"], m["name"]): m["value"] for m in reproduced["metrics"]}
    rows = [("", "recorded", "reproduced", "difference", "tolerance", "")]
    is_reproduced = True
    for metric in target.record.get("metrics", []):
        split, name, value = metric["split"], metric["name"], metric["value"]
        size = ((target.record.get("dataset") or {}).get("splits") or {}).get(split) or 1
        allowed = (
            points / 100 if points is not None else tolerance(name, value, size) + target.record.get("rounding", 0.0)
        )
        measured = scores.get((split, name))
        within = measured is not None and abs(measured - value) <= allowed
        columns = ("-", "-") if measured is None else (f"{100 * measured:.2f} %", f"{100 * (measured - value):+.2f}")
        verdict = "within" if within else "outside" if measured is not None else "not measured"
        rows.append((f"{split} {name}", f"{100 * value:.2f} %", *columns, f"±{100 * allowed:.2f}", verdict))
        is_reproduced = is_reproduced and within
    if len(rows) == 1:
        text = ", ".join(f"{split} {name} {100 * value:.2f} %" for (split, name), value in scores.items())
        print(f"{target.name}: {text}. There is no record to compare with")
        return True
    print_columns(rows)
    print(f"{target.name}: {'reproduced' if is_reproduced else 'not reproduced'}{_bitwise(target.record, reproduced)}")
    return is_reproduced


def _bitwise(record: Record, reproduced: Record) -> str:
    """Complete a sentence with whether the weights are bitwise equal, and if not, what else differs."""
    if "sha256" not in record:
        return ""
    if record["sha256"] == reproduced["sha256"]:
        return f", bitwise equal: sha256 {reproduced['sha256'][:12]}…"
    old, new = _circumstances(record), _circumstances(reproduced)
    keys = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    pairs = [["none" if side.get(key) is None else side[key] for side in (old, new)] for key in keys]
    differs = "; ".join(f"{key} ({a} in the record, {b} here)" for key, (a, b) in zip(keys, pairs, strict=True))
    return f", not bitwise equal. What differs: {differs or 'nothing that is recorded'}"


def resume_changes(record: Record) -> str | None:
    """Return what was changed when a run was resumed, or None if nothing was."""
    changes = [
        f"{name} from {old} to {new} after step {change['step']}"
        for change in record.get("changes") or ()
        for name, (old, new) in change["options"].items()
    ]
    return ", ".join(changes) or None


def _circumstances(record: Record) -> dict[str, Any]:
    """Return everything in a record that may have affected the weights: environment, code, data and options."""
    other = (*RUN_OPTIONS, "--config", "--seed_everything")
    options = split_options(shlex.split(record.get("command") or "")[2:])
    return {
        **record.get("environment", {}),
        **{key: record.get(key) for key in ("version", "git_revision", "seed")},
        "data": (record.get("dataset") or {}).get("fingerprint"),
        "options changed on resuming": resume_changes(record),
        **{name: " ".join(values) for name, *values in options if name not in other},
    }
