"""The demo of segmentation with fewer scenes and epochs: every step runs and writes its files."""

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("segmentation_models_pytorch")

from acmix_zoo.cli.main import main
from examples import demo_segment, demo_steps


def test_scenes_have_masks_of_their_digits(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_segment, "SCENES", {"train": 3, "val": 1, "test": 1})
    folder = demo_segment.write_scenes(tmp_path / "scenes")
    assert (folder / "classes.txt").read_text().split() == ["background", *map(str, range(10))]
    masks = [np.asarray(Image.open(path)) for path in sorted((folder / "masks").glob("*/*.png"))]
    assert len(masks) == 5
    assert all(len(np.unique(mask)) >= 2 and mask.max() <= 10 and 0.02 < (mask > 0).mean() < 0.6 for mask in masks)


@pytest.mark.slow
def test_demo_segment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def run_here(arguments: list[str]) -> None:
        assert main(arguments) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_steps, "acmix_zoo_command", run_here)
    monkeypatch.setattr(demo_segment, "SCENES", {"train": 32, "val": 4, "test": 4})
    monkeypatch.setitem(demo_segment.OPTIONS, "trainer.max_epochs", 1)
    demo_segment.main()
    assert "test: mIoU " in capfd.readouterr().out
    assert (tmp_path / "runs/demo-segment/run/predictions.png").is_file()
    assert len(list((tmp_path / "runs/demo-segment/run/predictions").iterdir())) == 4
