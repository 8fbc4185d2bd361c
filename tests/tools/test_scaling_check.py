"""`tools.scaling_check`: predictions from given times, and a short real run."""

from __future__ import annotations

from pathlib import Path

import pytest

from acmix_zoo.scaling.machines import Link, Machine
from acmix_zoo.scaling.step import BUCKET, compute_seconds
from tools.scaling_check import MODES, check_networks, fit_link, read_checks, run_checks, training_of_network

NAME = "acmix_resnet_pico"
UNIT = Machine("1 FLOP/s", 0, {"float32": 1}, Link(1, 0), Link(1, 0))


def test_link_is_recovered_from_its_times() -> None:
    link = Link(2e9, 5e-5)
    times = {size: [1e3 * (size / 2e9 + 2 * 5e-5)] * 3 for size in (4096, 2**20, 2**26)}
    found = fit_link(times)
    assert (found.rate, found.latency) == (pytest.approx(link.rate), pytest.approx(link.latency))


def test_predictions_for_a_network() -> None:
    """The network takes 10 ms alone and 11 ms next to another one, and reaches a tenth of the peak when alone."""
    training = training_of_network(NAME)
    flops = compute_seconds(training, UNIT, 1)
    times = dict(zip(MODES, ([10.0], [19.0], [11.0], [15.0]), strict=True))
    checks = {check.check: check for check in check_networks({NAME: times}, Link(1e9, 1e-3), flops / 1e-3)}
    predicted = [checks[name].predicted for name in ("doubled batch", "one utilisation", "two processes")]
    assert predicted == [20, pytest.approx(10), 10]
    assert 4 * training.trainable < BUCKET
    sending = 2 + 4 * training.trainable / 1e6
    assert checks["DDP"].predicted == pytest.approx(11 + sending, rel=1e-3)
    assert checks["DDP"].deviation == pytest.approx((11 + sending) / 15 - 1, rel=1e-2)
    assert checks["one utilisation"].what == f"{NAME}: 10 % of the peak"


@pytest.mark.slow
def test_two_processes(tmp_path: Path) -> None:
    checks = run_checks(tmp_path / "s.csv", (NAME,), rounds=2)
    _, read = read_checks(tmp_path / "s.csv")
    kinds = {"all-reduce", "doubled batch", "one utilisation", "two processes", "DDP", "DDP without overlap", "memory"}
    assert read == checks and {check.check for check in checks} == kinds
    assert all(check.measured > 0 and check.predicted > 0 for check in checks)
