"""Figures that a tool draws for the documentation."""

from pathlib import Path

import torch

from tools.decomposition_figure import draw


def test_decomposition(tmp_path: Path) -> None:
    assert draw(torch.rand(28, 28), tmp_path / "a.png") < 1e-5
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
