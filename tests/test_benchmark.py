"""The benchmark of the layer measures what it says."""

import subprocess
import sys

from acmix_zoo.analysis.benchmark import FORMS, times


def test_times() -> None:
    measured = times(8, 6, batch=1, train=True, repeats=1)
    assert set(measured) == set(FORMS) and min(measured.values()) > 0


def test_peak_counts_the_copies_of_the_reference() -> None:
    """49 copies of a 16-channel map of 64², four bytes each, are 12 MiB; a fresh process sees at least those."""
    command = [sys.executable, "-m", "acmix_zoo.analysis.benchmark", "--threads", "1", "--peak"]
    done = subprocess.run([*command, '["reference", 16, 64, 1, false]'], capture_output=True, text=True, check=True)
    assert float(done.stdout) > 12
