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
