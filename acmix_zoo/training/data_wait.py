"""Measure how long the training loop waits for its next batch."""

from __future__ import annotations

import time
from collections.abc import Callable
from typing import Any

_FETCH = "[_TrainingEpochLoop].train_dataloader_next"  # Lightning's name, in its profilers, for waiting for a batch


class DataWait:
    """Adds up the time that Lightning's loop waits for batches, by wrapping the trainer's profiler."""

    def __init__(self) -> None:
        self._seconds = 0.0
        self._detach: Callable[[], None] | None = None

    def attach(self, profiler: Any) -> None:
        """Start measuring."""
        self.detach()
        start, stop = profiler.start, profiler.stop
        started_at = 0.0

        def timed_start(action: str) -> None:
            nonlocal started_at
            start(action)
            if action == _FETCH:
                started_at = time.perf_counter()

        def timed_stop(action: str) -> None:
            if action == _FETCH:
                self._seconds += time.perf_counter() - started_at
            stop(action)

        def restore() -> None:
            del profiler.start, profiler.stop  # the attributes of the instance, which hide those of the class

        profiler.start, profiler.stop, self._detach = timed_start, timed_stop, restore

    def detach(self) -> None:
        """Restore the profiler."""
        if self._detach is not None:
            self._detach()
            self._detach = None

    def take(self) -> float:
        """Return the seconds waited since the last call."""
        seconds, self._seconds = self._seconds, 0.0
        return seconds
