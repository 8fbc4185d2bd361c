"""`acmix-zoo fit`: the run folder, resuming after a kill or a full disk, and several processes."""

import csv
import json
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import yaml
from support.training import checkpoint_state, have_same_weights, make_image_folder, no_large_files, three_epochs

from acmix_zoo.cli.main import main
from acmix_zoo.weights import check_folder, read_config


def read_metrics(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def test_run_folder_is_complete(run: Path) -> None:
    assert {p.name for p in run.iterdir()} - {"val"} == {  # another test may have called `validate`
        *("config.yaml", "metrics.csv", "curves.png", "tensorboard", "checkpoints", "weights", ".lock"),
        *("augmented.png", "test"),
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert any(p.name.startswith("events.out") for p in (run / "tensorboard").iterdir())
    assert [row["epoch"] for row in read_metrics(run)] == ["1", "2", "3"]
    assert set(read_metrics(run)[0]) == {
        *("epoch", "step", "train/loss", "val/loss", "val/top1", "lr", "seconds", "images_per_second"),
        *("speed/images_per_second", "speed/data_wait", "speed/mfu", "speed/eta_minutes"),
    }


def test_weight_folder_verifies_and_has_the_record(run: Path, photos: Path) -> None:
    assert check_folder(run / "weights") == []
    config = read_config(run / "weights")
    assert config["architecture"] == "test_resnet"
    assert config["pretrained_cfg"]["label_names"] == ["class0", "class1", "class2"]
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    record = config["acmix_zoo"]
    assert record["name"] == "test_resnet.colours"
    assert record["license"] == "mit"
    assert record["seed"] == 0
    assert record["dataset"]["splits"] == {"train": 27, "val": 9, "test": 12}
    assert record["command"].startswith("acmix-zoo fit --model.model=test_resnet")
    assert f" --data.source={photos.name} " in record["command"] and "--run.folder=first" in record["command"]
    scores = {(m["split"], m["name"]): m["value"] for m in record["metrics"]}
    assert scores["val", "top1"] == pytest.approx(max(float(row["val/top1"]) for row in read_metrics(run)), abs=1e-5)
    assert scores["test", "top1"] > 0.6


def test_record_names_no_folder_of_this_machine(run: Path, photos: Path) -> None:
    """The same holds for the model card."""
    text = (run / "weights/config.json").read_text()
    assert json.loads(text)["acmix_zoo"]["command"]
    for written in (text, (run / "weights/README.md").read_text()):
        for place in (Path.home(), Path.cwd(), run.parent, photos.parent):
            assert str(place) not in written


def test_the_saved_configuration_gives_the_same_weights(run: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(run / "config.yaml"), f"--run.folder={tmp_path / 'again'}"]) == 0
    assert have_same_weights(run / "checkpoints/last.ckpt", tmp_path / "again/checkpoints/last.ckpt")


def test_run_test_false_leaves_the_test_split_alone(photos: Path, tmp_path: Path) -> None:
    assert main(three_epochs(photos, tmp_path / "stage1", "--trainer.max_epochs=1", "--run.test=false")) == 0
    metrics = read_config(tmp_path / "stage1" / "weights")["acmix_zoo"]["metrics"]
    assert {m["split"] for m in metrics} == {"val"}


def test_fine_tuning_starts_from_a_weight_folder(run: Path, tmp_path: Path) -> None:
    """The new data has different classes. The record names the weights that training started from."""
    two_classes = make_image_folder(tmp_path / "two_classes", classes=2)
    folder = tmp_path / "tuned"
    more = [f"--model.pretrained={run / 'weights'}", "--trainer.max_epochs=1", "--model.layer_decay=0.5"]
    assert main(three_epochs(two_classes, folder, *more)) == 0
    config = read_config(folder / "weights")
    assert config["num_classes"] == 2
    assert config["acmix_zoo"]["parent"] == "test_resnet.colours"
    assert {m["split"] for m in config["acmix_zoo"]["metrics"]} == {"val"}  # there is no test split


@pytest.mark.slow  # tests/training/test_interruptions.py has quick ones with signals and crashes
def test_a_killed_run_resumes_to_the_same_weights(photos: Path, tmp_path: Path, run: Path) -> None:
    """The run is killed with kill -9 after its first epoch and resumed with --ckpt_path last."""
    folder = tmp_path / "killed"
    command = three_epochs(photos, folder, "--run.tag=colours", "--run.license=mit")
    process = subprocess.Popen(
        [sys.executable, "-m", "acmix_zoo.cli", *command], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
    )
    try:
        until = time.monotonic() + 120
        while not (folder / "checkpoints/best.ckpt").exists() and process.poll() is None and time.monotonic() < until:
            time.sleep(0.005)
        process.send_signal(signal.SIGKILL)
    finally:
        process.kill()
    assert process.wait() == -signal.SIGKILL
    assert not (folder / "weights").exists()
    assert main([*command, "--ckpt_path=last"]) == 0
    assert have_same_weights(run / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt")
    assert [row["epoch"] for row in read_metrics(folder)] == ["1", "2", "3"]
    assert check_folder(folder / "weights") == []
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] is None


def test_a_finished_run_without_weights_writes_them_again(
    photos: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A kill between the last epoch and the weight folder leaves such a run."""
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    before = checkpoint_state(run / "checkpoints/last.ckpt")
    digest = read_config(run / "weights")["acmix_zoo"]["sha256"]
    (run / "weights/model.safetensors").unlink()
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path=last"]) == 0
    assert "epoch 3/3" not in capsys.readouterr().out
    assert torch.equal(before["model.fc.weight"], checkpoint_state(run / "checkpoints/last.ckpt")["model.fc.weight"])
    assert read_config(run / "weights")["acmix_zoo"]["sha256"] == digest
    assert len(read_metrics(run)) == 3


def test_a_disk_that_is_full_after_training_loses_nothing(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weight folder does not fit. The error says where the weights are, and running the command again succeeds."""
    folder = tmp_path / "run"
    command = three_epochs(photos, folder, "--trainer.max_epochs=1")
    assert main(command) == 0
    (folder / "weights" / "README.md").write_text("kept")
    (folder / "weights" / "model.safetensors").unlink()
    with no_large_files():
        assert main([*command, "--ckpt_path=last"]) == 1
    error = capsys.readouterr().err
    assert "could not write" in error and str(folder / "checkpoints/best.ckpt") in error
    assert (folder / "weights" / "README.md").read_text() == "kept"
    assert main([*command, "--ckpt_path=last"]) == 0
    assert check_folder(folder / "weights") == []


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "acmix_zoo.cli"], [Path(sys.executable).parent / "acmix-zoo"]],
    ids=["module", "script"],
)
def test_two_processes_count_every_image_once(program: list[Any], photos: Path, tmp_path: Path) -> None:
    """Lightning starts the second process in the same way as the first one was started."""
    folder = tmp_path / "two"
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2", "--data.batch_size=4"]
    done = subprocess.run([*program, *three_epochs(photos, folder, *more)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = read_config(folder / "weights")["acmix_zoo"]
    assert record["environment"]["devices"] == 2
    value = next(m["value"] for m in record["metrics"] if (m["split"], m["name"]) == ("val", "top1"))
    assert value * 9 == pytest.approx(round(value * 9), abs=1e-4)  # nine validation images, each counted once
    assert check_folder(folder / "weights") == []


@pytest.mark.slow
def test_a_compiled_run_saves_ordinary_weights(photos: Path, tmp_path: Path, run: Path) -> None:
    """Their names are those of the network that is not compiled."""
    command = three_epochs(photos, tmp_path / "run", "--model.compile=true", "--trainer.max_epochs=1")
    assert main(command) == 0
    assert (
        checkpoint_state(tmp_path / "run/checkpoints/best.ckpt").keys()
        == checkpoint_state(run / "checkpoints/best.ckpt").keys()
    )
    assert check_folder(tmp_path / "run/weights") == []
