"""Time spent on training, without the validations in between."""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import NamedTuple


class Interval(NamedTuple):
    """A number of consecutive training batches.

    Attributes:
        seconds: duration, without validations.
        waited: the part of it in which this process waited for data.
        images: number of images, in all processes.
    """

    seconds: float = 0.0
    waited: float = 0.0
    images: int = 0


def add_intervals(intervals: Iterable[Interval]) -> Interval:
    """Return the sum of intervals."""
    seconds, waited, images = (sum(column) for column in zip(*intervals, strict=True))
    return Interval(seconds, waited, int(images))


class TrainingClock:
    """Measures the seconds of an epoch and of its steps. Validations pause it.

    Attributes:
        validation_seconds: time of the validations since `start`.
    """

    def __init__(self) -> None:
        self.start()

    def start(self) -> None:
        """Start an epoch."""
        self._start = self._last_lap = time.perf_counter()
        self._paused_at = 0.0
        self.validation_seconds = 0.0

    def pause(self) -> None:
        """Stop the clock for a validation."""
        self._paused_at = time.perf_counter()

    def unpause(self) -> float:
        """Continue after a validation, and return how long it took."""
        seconds = time.perf_counter() - self._paused_at
        self.validation_seconds += seconds
        self._last_lap += seconds
        return seconds

    def skip(self, seconds: float) -> None:
        """Leave seconds out of the present lap, because they were spent on something else."""
        self._last_lap += seconds

    def lap(self) -> float:
        """Return the seconds of training since the last lap, or since the start, and start the next lap."""
        now = time.perf_counter()
        seconds, self._last_lap = now - self._last_lap, now
        return seconds

    def elapsed(self) -> float:
        """Return the seconds since the start, validations included."""
        return time.perf_counter() - self._start
