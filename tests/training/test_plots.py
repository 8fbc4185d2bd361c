"""Names that the user has chosen appear literally in plots."""

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from acmix_zoo.training.plots import plot_confusion


def test_names_with_markup_can_be_plotted(tmp_path: Path) -> None:
    name = r"<b>5 $\frac$ & 10</b>"  # not a formula that matplotlib could typeset
    path = plot_confusion(np.eye(2), [name, "b"], tmp_path / "confusion.png")
    assert path.read_bytes().startswith(b"\x89PNG")
