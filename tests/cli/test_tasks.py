"""The recipe's task selects the network, the data and the options of a command, and its run folder is complete."""

import csv
import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image

pytest.importorskip("lightning")

import torch
from support.tasks import TrainedTask

from acmix_zoo import create_model
from acmix_zoo.cli.find_task import find_task
from acmix_zoo.cli.main import main
from acmix_zoo.weights import check_folder, read_config


def test_the_last_of_the_recipes_and_options_decides(tmp_path: Path) -> None:
    segment, classify = tmp_path / "segment.yaml", tmp_path / "plain.yaml"
    segment.write_text("task: segmentation\n")
    classify.write_text("model: {lr: 0.1}\n")
    assert find_task(["fit"]) == find_task(["fit", "--config", str(classify)]) == "classification"
    assert find_task(["fit", "--config", str(segment), f"--config={classify}"]) == "segmentation"
    assert find_task(["fit", "--config={task: segmentation}"]) == "segmentation"
    assert find_task(["fit", "--config", str(segment), "--task=classification"]) == "classification"
    assert find_task(["fit", "--config", str(tmp_path / "missing.yaml")]) == "classification"
    with pytest.raises(ValueError, match=r"unknown task 'colouring'\. Expected classification, segmentation"):
        find_task(["fit", "--task", "colouring"])


def test_a_run_writes_its_history_weights_and_card(trained: TrainedTask) -> None:
    folder, kind = trained.folder, trained.task.kind
    with (folder / "metrics.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["epoch"] for row in rows] == ["1", "2", "3"]
    scores = [float(row[f"val/{kind.main_metric}"]) for row in rows]
    config = read_config(folder / "weights")
    assert scores[config["acmix_zoo"]["best_epoch"] - 1] == max(scores)
    assert config.get("task", "classification") == kind.name
    assert (folder / "curves.png").read_bytes().startswith(b"\x89PNG")
    assert yaml.safe_load((folder / "config.yaml").read_text())["task"] == kind.name
    card = (folder / "weights/README.md").read_text()
    assert yaml.safe_load(card.split("---")[1])["pipeline_tag"] == kind.pipeline_tag
    pictures = {"curves.png"} if kind.name == "detection" else {"confusion.png", "curves.png"}
    assert {path.name for path in (folder / "weights/pictures").iterdir()} == pictures
    assert all(f"](pictures/{name})" in card for name in pictures)
    measured = {(m["split"], m["name"]) for m in config["acmix_zoo"]["metrics"]}
    assert ("test", kind.main_metric) in measured
    logged = {name.removeprefix("val/") for name in rows[0] if name.startswith("val/")}
    assert {name for split, name in measured if split == "val"} == logged - {"loss"}


def test_a_weight_folder_builds_its_network_and_proves_itself(trained: TrainedTask) -> None:
    folder = trained.folder / "weights"
    assert check_folder(folder) == []
    model = create_model(folder)
    state = torch.load(trained.folder / "checkpoints/best.ckpt", weights_only=True)["state_dict"]
    assert all(torch.equal(value, state[f"model.{name}"]) for name, value in model.state_dict().items())
    fewer = create_model(folder, num_classes=2)
    kept = [name for name, value in fewer.state_dict().items() if torch.equal(value, model.state_dict()[name])]
    assert fewer.num_classes == 2 and len(state) - len(kept) < 10


def test_an_unfinished_run_is_exported(trained: TrainedTask, tmp_path: Path) -> None:
    run = tmp_path / "run"
    shutil.copytree(trained.folder, run, ignore=shutil.ignore_patterns("weights"))
    assert main(["export", str(run), str(tmp_path / "weights")]) == 0
    assert check_folder(tmp_path / "weights") == []
    whole, exported = (create_model(path).state_dict() for path in (trained.folder, tmp_path / "weights"))
    assert all(torch.equal(value, exported[name]) for name, value in whole.items())


def test_predict_writes_the_form_of_the_task(
    trained: TrainedTask, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The data of the training are not needed."""
    run, task = tmp_path / "run", trained.task
    shutil.copytree(trained.folder, run)
    picture = next(path for path in sorted(trained.source.rglob("*.png")) if "masks" not in path.parts)
    assert main(["predict", "--config", str(run), f"--data.predict={picture}", "--data.source=moved"]) == 0
    written = run / task.predictions
    assert str(written) in capsys.readouterr().out
    if task.name == "segmentation":
        with Image.open(written / f"{picture.stem}.png") as mask, Image.open(picture) as image:
            assert mask.mode == "P" and mask.size == image.size
            assert set(np.unique(np.asarray(mask))) <= {0, 1, 2}
            assert mask.getpalette()[:6] == [0, 0, 0, 128, 0, 0]
    if task.name == "detection":
        content = json.loads(written.read_text())
        assert content["categories"] == [{"id": i, "name": n} for i, n in ((3, "red"), (7, "green"), (9, "blue"))]
        assert content["images"] == [{"id": int(picture.stem), "file_name": str(picture), "width": 64, "height": 48}]
        assert all(0 <= each["score"] <= 1 and len(each["bbox"]) == 4 for each in content["annotations"])
    assert main(["predict", "--config", str(run), f"--data.predict={picture}"]) == 0
    assert (run / f"{written.stem}-1{written.suffix}").exists()
    assert main(["predict", str(picture), "--model", str(run / "weights"), f"--output={tmp_path / 'found'}"]) == 0
    assert _contents(tmp_path / "found" / task.predictions) == _contents(written)
    command = ["predict", str(picture), "--model", str(run), "--threshold=1", f"--output={tmp_path / 'none'}"]
    if task.name == "detection":
        assert main(command) == 0
        assert json.loads((tmp_path / "none" / task.predictions).read_text())["annotations"] == []
    else:
        with pytest.raises(SystemExit):
            main(command)
        assert "--threshold is for detectors" in capsys.readouterr().err


def _contents(path: Path) -> list[bytes]:
    """Return the contents of a file, or of the files in a folder."""
    return [file.read_bytes() for file in (sorted(path.iterdir()) if path.is_dir() else [path])]
