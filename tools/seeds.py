"""Summarise the results of runs that only differ in their seeds: means, spreads and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping

from scipy.stats import t as student  # type: ignore[import-untyped]

Scores = Mapping[int, float]  # a metric between 0 and 1, by seed


def mean_and_spread(scores: Scores) -> str:
    """Return the mean and its standard deviation over seeds in percent: "53.2 ± 0.4 %"."""
    values = [100 * value for value in scores.values()]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def paired_difference(scores: Scores, baseline: Scores) -> str:
    """Return the mean difference in percentage points, and its 95 % confidence interval: "+0.8 [−0.3, +1.9]".

    Only seeds that both have are compared. The interval is that of Student's t distribution. One seed gives no
    interval, and none gives "".
    """
    differences = [100 * (scores[seed] - baseline[seed]) for seed in scores.keys() & baseline.keys()]
    if not differences:
        return ""
    mean = statistics.mean(differences)
    if len(differences) == 1:
        return _signed(mean)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(student.ppf(0.975, len(differences) - 1)) * error
    return f"{_signed(mean)} [{_signed(mean - half)}, {_signed(mean + half)}]"


def _signed(value: float) -> str:
    return f"{value:+z.1f}".replace("-", "−")
