"""Means, spreads and paired differences over seeds."""

import pytest

pytest.importorskip("scipy")

from tools.seeds import holm, mean_and_spread, paired_difference, paired_p_value


def test_means_come_with_their_standard_deviation() -> None:
    assert mean_and_spread({0: 0.50, 1: 0.52, 2: 0.54}) == "52.0 ± 2.0 %"
    assert mean_and_spread({1: 0.5}) == "50.0 %"


def test_differences_are_paired_by_seed() -> None:
    # differences of 1, 2 and 3 points: mean 2, standard error 1/√3, and 4.303 is the 97.5 % quantile for 2 degrees
    scores, baseline = {0: 0.51, 1: 0.62, 2: 0.73, 3: 0.9}, {0: 0.50, 1: 0.60, 2: 0.70}
    assert paired_difference(scores, baseline) == "+2.0 [−0.5, +4.5]"
    assert paired_difference({0: 0.49}, baseline) == "−1.0"
    assert paired_difference({0: 0.51, 1: 0.61}, baseline) == "+1.0"  # whose interval would be a point
    assert paired_p_value({0: 0.51, 1: 0.61}, baseline) is None
    t = 2 * 3**0.5  # with two degrees of freedom, p is 1 − t/√(t² + 2)
    assert paired_p_value(scores, baseline) == pytest.approx(1 - t / (t**2 + 2) ** 0.5)
    assert paired_difference({7: 0.49}, baseline) == ""
    assert paired_difference({0: 0.4999}, baseline) == "+0.0"


def test_p_values_are_corrected_for_their_number() -> None:
    assert holm([0.04, None, 0.01, 0.03]) == pytest.approx([0.06, None, 0.03, 0.06])  # 0.04 is not below its neighbour
    assert holm([0.9, 0.6]) == [1.0, 1.0]
    assert holm([]) == []
