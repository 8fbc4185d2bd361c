"""The demo of detection: the shipped images fit it, and with few images and one epoch every step runs."""

from pathlib import Path

import pytest

from acmix_zoo import list_models
from acmix_zoo.cli.main import main
from acmix_zoo.data.boxes.coco_source import CocoSource
from examples import demo_detect, demo_steps


def test_the_shipped_images_have_boxes_and_state_their_licence() -> None:
    source = CocoSource(str(demo_detect.CELLS))
    assert source.class_names == ("RBC", "WBC", "Platelets") and source.license == "MIT"
    boxes = {split: [each.boxes for each in images.objects] for split, images in source.splits.items()}  # type: ignore[attr-defined]
    assert boxes.keys() == {"train", "val", "test"} and all(len(box) for split in boxes.values() for box in split)
    assert source.check.summary() == ""
    files = [path for path in demo_detect.CELLS.rglob("*") if path.is_file()]
    assert sum(path.stat().st_size for path in files) < 3e6
    text = (demo_detect.CELLS / "README.md").read_text(encoding="utf-8")
    assert "https://github.com/Shenggan/BCCD_Dataset" in text and "Copyright (c) 2017 shenggan" in text


def test_the_weights_are_shipped() -> None:
    assert demo_detect.WEIGHTS in list_models(pretrained=True)


@pytest.mark.slow
def test_demo_detect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> None:
    def run_here(arguments: list[str]) -> None:
        few = {"fit": ["--trainer.limit_train_batches=2"], "predict": []}
        assert main([*arguments, *few.get(arguments[0], [])]) == 0

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(demo_steps, "acmix_zoo_command", run_here)
    monkeypatch.setattr(demo_detect, "acmix_zoo_command", run_here)
    monkeypatch.setattr(demo_detect, "EPOCHS", 1)
    demo_detect.main()
    out = capfd.readouterr().out
    assert "data: blood_cells, 3 classes" in out and "AP50 " in out
    run = tmp_path / "runs/demo-detect/run"
    assert (run / "predictions.png").is_file() and (run / "predictions.json").is_file()
