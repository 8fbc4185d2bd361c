"""Summarise the results of runs that only differ in their seeds: means, spreads and paired differences."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence

from scipy.stats import t as student  # type: ignore[import-untyped]
from scipy.stats import ttest_rel

Scores = Mapping[int, float]  # a metric between 0 and 1, by seed
_FEWEST = 3  # seeds for an interval. That of two is up to 12.7 times their distance, or nearly zero by chance.


def mean_and_spread(scores: Scores) -> str:
    """Return the mean and its standard deviation over seeds in percent: "53.2 ± 0.4 %"."""
    values = [100 * value for value in scores.values()]
    spread = f" ± {statistics.stdev(values):.1f}" if len(values) > 1 else ""
    return f"{statistics.mean(values):.1f}{spread} %"


def paired_difference(scores: Scores, baseline: Scores) -> str:
    """Return the mean difference in percentage points, and its 95 % confidence interval: "+0.8 [−0.3, +1.9]".

    Only seeds that both have are compared. The interval is that of Student's t distribution. One or two seeds give no
    interval, and none gives "".
    """
    differences = [100 * (scores[seed] - baseline[seed]) for seed in scores.keys() & baseline.keys()]
    if not differences:
        return ""
    mean = statistics.mean(differences)
    if len(differences) < _FEWEST:
        return _signed(mean)
    error = statistics.stdev(differences) / len(differences) ** 0.5
    half = float(student.ppf(0.975, len(differences) - 1)) * error
    return f"{_signed(mean)} [{_signed(mean - half)}, {_signed(mean + half)}]"


def paired_p_value(scores: Scores, baseline: Scores) -> float | None:
    """Return the two-sided p-value of Student's paired t-test, or None for fewer than three common seeds."""
    seeds = sorted(scores.keys() & baseline.keys())
    if len(seeds) < _FEWEST:
        return None
    return float(ttest_rel([scores[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)


def holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Correct p-values for their number by Holm's method. None is not counted, and stays None."""
    ordered = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(ordered):
        largest = max(largest, min(1.0, p * (len(ordered) - rank)))
        corrected[place] = largest
    return corrected


def _signed(value: float) -> str:
    return f"{value:+z.1f}".replace("-", "−")
