"""The files that `predict` writes."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")

from acmix_zoo.cli.predictions import write_masks
from acmix_zoo.tasks.segmentation import MaskPrediction

ONE_PROCESS: Any = SimpleNamespace(is_global_zero=True, strategy=SimpleNamespace(barrier=lambda name: None))


def test_masks_of_images_that_differ_in_the_extension_have_different_names(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    images = ["/in/a.jpg", "/in/a.png", "/in/b.jpg", "/in/c/a.jpg", "/in/a.jpg.webp", "/in/broken.jpg"]
    masks = [MaskPrediction(index, torch.full((2, 3), index, dtype=torch.uint8)) for index in range(5)]
    write_masks(tmp_path / "predictions", masks, images, ["background", *"abcd"], ONE_PROCESS)
    found = {}
    for path in (tmp_path / "predictions").rglob("*.png"):
        with Image.open(path) as mask:
            found[path.relative_to(tmp_path / "predictions").as_posix()] = int(np.asarray(mask)[0, 0])
    assert found == {"a.jpg.png": 0, "a.png.png": 1, "b.png": 2, "c/a.png": 3, "a.jpg.webp.png": 4}
    assert "Saved the masks of 5 images to" in capsys.readouterr().out


def test_masks_stay_in_their_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Paths that lead upwards, and relative beside absolute ones, must not lead out of it."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "photos").mkdir()
    (tmp_path / "photos/1.png").write_text("mine")
    images = ["../../photos/1.jpg", "more/2.jpg", str(tmp_path / "3.jpg")]
    masks = [MaskPrediction(index, torch.zeros(2, 3, dtype=torch.uint8)) for index in range(3)]
    folder = tmp_path / "run/predictions"
    write_masks(folder, masks, images, ["background"], ONE_PROCESS)
    assert sorted(path.name for path in folder.rglob("*.png")) == ["1.png", "2.png", "3.png"]
    assert (tmp_path / "photos/1.png").read_text() == "mine"
