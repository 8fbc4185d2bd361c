"""User-chosen names appear literally in plots and HTML reports."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from acmix_zoo.training.plots import plot_confusion
from acmix_zoo.training.report import write_html

NAME = r"<b>5 $\frac$ & 10</b>"  # HTML markup, and not a formula that matplotlib could typeset


def test_names_with_markup_can_be_plotted(tmp_path: Path) -> None:
    path = plot_confusion(np.eye(2), [NAME, "b"], tmp_path / "confusion.png")
    assert path.read_bytes().startswith(b"\x89PNG")


def test_names_with_markup_are_escaped_in_a_page(tmp_path: Path) -> None:
    page = write_html(tmp_path / "page.html", NAME, [(NAME, NAME), ("", [[NAME, "top-1"], [NAME, "50 %"]])])
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text and text.count("&lt;b&gt;") == 6
