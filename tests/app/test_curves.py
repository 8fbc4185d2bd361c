"""The curves of a training: where their points are, also for a single epoch and without validation."""

import re

from acmix_zoo.app.curves import curves_html


def lines(html: str) -> list[str]:
    return re.findall(r'<polyline class="\w+" points="(.*?)"', html)


def test_points_are_at_their_epoch_and_value() -> None:
    rows = [
        {"epoch": 1.0, "train/loss": 2.0, "val/loss": 1.0, "val/top1": 0.25},
        {"epoch": 3.0, "train/loss": 0.0, "val/loss": 1.0, "val/top1": 1.0},
    ]
    html = curves_html(rows, epochs=5)
    assert lines(html) == ["0.00,75.00 50.00,0.00", "0.00,0.00 50.00,100.00", "0.00,50.00 50.00,50.00"]
    assert "<span>2.00</span><span>1.00</span><span>0</span>" in html and "<span>epoch 5</span>" in html


def test_a_single_epoch_is_visible_and_missing_metrics_are_left_out() -> None:
    assert lines(curves_html([{"epoch": 1.0, "train/loss": 1.0}], epochs=1)) == ["", "-0.80,0.00 0.80,0.00", ""]
    assert lines(curves_html([], epochs=3)) == ["", "", ""]
