"""Where a run is written, and how it is found again after it was moved or from another folder."""

import csv
import shutil
from pathlib import Path

import pytest

pytest.importorskip("lightning")

import yaml
from jsonargparse import Namespace
from support.training import fit_arguments, make_image_folder

from acmix_zoo.cli.main import main
from acmix_zoo.cli.run_folder import check_run_folder, choose_run_folder, next_run_folder
from acmix_zoo.data import open_source
from acmix_zoo.weights import read_config


def test_run_folders_are_named_after_recipe_and_data(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a recipe, the name of the network is used."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "light.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.01}}))
    assert main(fit_arguments(photos, None)) == 0
    assert main([*fit_arguments(photos, None), "--config=light.yaml"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["light-photos", "test_resnet-photos"]


def test_the_run_folder_of_a_recipe_without_data(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    assert main(["test", "--config", "finetune/folder"]) == 1
    assert "needs trained weights, but runs/folder/checkpoints/best.ckpt does not exist" in capsys.readouterr().err


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_run_is_evaluated_from_another_folder(
    photo_run: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--config ../runs/x/config.yaml` uses that run folder, and finds the data where the run was started."""
    (photo_run.parents[1] / "another").mkdir(exist_ok=True)
    monkeypatch.chdir(photo_run.parents[1] / "another")
    assert main([command, "--config=../runs/x/config.yaml"]) == 0
    split = {"validate": "val", "test": "test"}[command]
    record = read_config(photo_run / "weights")["acmix_zoo"]
    (score,) = [m["value"] for m in record["metrics"] if m["split"] == split]
    printed = capsys.readouterr().out
    assert f"{split}: accuracy {100 * score:.2f} %, loss " in printed and "best.ckpt" in printed


def test_a_run_folder_can_be_moved(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    shutil.copytree(photo_run, tmp_path / "moved")
    assert main(["validate", f"--config={tmp_path / 'moved/config.yaml'}", f"--data.source={photos}"]) == 0
    source = f"--data.predict={photos / 'test/class1'}"
    assert main(["predict", f"--config={tmp_path / 'moved/config.yaml'}", source]) == 0
    assert (tmp_path / "moved/predictions.csv").exists() and not (photo_run / "predictions.csv").exists()


def test_a_moved_run_finds_its_data(
    photo_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.yaml has absolute paths, so that a different folder with the same name is not taken for the data."""
    config = yaml.safe_load((photo_run / "config.yaml").read_text())
    assert (config["data"]["source"], config["run"]["folder"]) == (str(photos), str(photo_run))
    shutil.copytree(photo_run, tmp_path / "alone/runs/x")
    make_image_folder(tmp_path / "alone/photos/train", classes=2)
    monkeypatch.chdir(tmp_path / "alone")
    assert main(["validate", "--config=runs/x"]) == 0  # the other photos have too few classes
    # moved together with its data, and the old folder is gone
    for name in ("runs/x", "photos"):
        shutil.copytree(photos.parent / name, tmp_path / "project" / name)
    path = tmp_path / "project/runs/x/config.yaml"
    path.write_text(path.read_text().replace(str(photos.parent), "/gone"))
    capsys.readouterr()
    assert main(["validate", f"--config={path}"]) == 0
    message = f"Using --data.source {tmp_path / 'project/photos'}: /gone/photos does not exist"
    assert message in capsys.readouterr().out
    shutil.rmtree(tmp_path / "project/photos")
    assert main(["validate", f"--config={path}"]) == 1
    error = capsys.readouterr().err
    assert "Looked for /gone/photos. Set the location with --data.source" in error


def test_a_relative_path_in_a_config_is_resolved_and_reported(
    photo_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configurations of earlier versions have relative paths. The command prints the folder that it uses."""
    shutil.copytree(photo_run, tmp_path / "moved")
    config = yaml.safe_load((photo_run / "config.yaml").read_text())
    config["data"]["source"], config["run"]["folder"] = "../photos", "../runs/x"
    (tmp_path / "moved/config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["validate", "--config=config.yaml"]) == 1
    assert f"Looked for {tmp_path / 'photos'}. Set the location with --data.source" in capsys.readouterr().err
    monkeypatch.chdir(photos)
    assert main(["validate", f"--config={tmp_path / 'moved'}"]) == 0
    printed = capsys.readouterr().out
    assert f"Using --data.source {photos}: " in printed and "has the relative path ../photos" in printed


def test_earlier_predictions_are_kept(
    photo_run: Path, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photo_run, tmp_path / "run")
    for split in ("test/class1", "train/class2", "test/class0"):
        source = f"--data.predict={photos / split}"
        assert main(["predict", f"--config={tmp_path / 'run/config.yaml'}", source]) == 0
    printed = capsys.readouterr().out
    assert f"Saved the predictions for 4 images to {tmp_path / 'run/predictions.csv'}" in printed
    assert "the previous ones are now in predictions-2.csv" in printed
    classes = []
    for name in ("predictions", "predictions-1", "predictions-2"):
        with (tmp_path / f"run/{name}.csv").open(newline="") as file:
            classes.append({Path(row["path"]).parent.name for row in csv.DictReader(file)})
    assert classes == [{"class0"}, {"class1"}, {"class2"}]


def test_the_configuration_of_a_run_resumes_it(
    photo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It contains `ckpt_path: null`. That repeats the run in another folder, and resumes it in its own."""
    shutil.copytree(photo_run, tmp_path / "runs/x")
    (tmp_path / "photos").symlink_to(photo_run.parents[1] / "photos")
    monkeypatch.chdir(tmp_path)
    fit = ["fit", "--config=runs/x/config.yaml"]
    assert main(fit) == 0
    assert "is finished: 1 of 1 epochs" in capsys.readouterr().out
    assert main([*fit, "--trainer.max_epochs=2"]) == 0
    assert "Resuming from epoch 2 of 2" in capsys.readouterr().out
    assert read_config(tmp_path / "runs/x/weights")["acmix_zoo"]["epochs"] == 2
    assert main([*fit, "--run.folder=runs/y"]) == 0
    assert "New run in runs/y" in capsys.readouterr().out


@pytest.mark.slow
def test_a_moved_run_that_started_from_weights_is_resumed(
    photo_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The weights have moved with it. A relative path is found from another directory, too."""
    weights = tmp_path / "project/weights"
    shutil.copytree(photo_run / "weights", weights)
    shutil.copytree(photos, tmp_path / "project/photos")
    monkeypatch.chdir(tmp_path / "project")
    for name, path in (("a", str(weights)), ("b", "weights"), ("c", str(weights))):
        assert main(fit_arguments(Path("photos"), Path("runs") / name, model__pretrained=path)) == 0
    for file in Path("runs/c/checkpoints").iterdir():  # as if it had stopped before its first checkpoint
        file.unlink()
    monkeypatch.chdir(tmp_path)
    (tmp_path / "project").rename(tmp_path / "moved")
    capsys.readouterr()
    for name in ("a", "b"):
        assert main(["fit", f"--config=moved/runs/{name}"]) == 0
        assert "is finished: 1 of 1 epochs" in capsys.readouterr().out
        assert main(["fit", f"--config=moved/runs/{name}", "--trainer.max_epochs=2"]) == 0
        assert "Resuming from epoch 2 of 2" in capsys.readouterr().out
    assert main(["fit", "--config=moved/runs/c"]) == 0
    assert "fine-tuned from " in capsys.readouterr().out


@pytest.mark.parametrize("source", ["..", "../", "sub/.."])
def test_a_run_folder_is_never_the_working_directory(
    source: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "pets/sub").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / ("pets" if source == "sub/.." else "pets/sub"))
    assert next_run_folder(source).path == Path("runs/pets")


def test_a_second_config_may_name_a_new_run_folder(photo_run: Path, photos: Path, tmp_path: Path) -> None:
    """The finished run of the first config stays as it is."""
    shutil.copytree(photo_run, tmp_path / "runs/x")
    before = {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/x").rglob("*")}
    config = yaml.safe_load((tmp_path / "runs/x/config.yaml").read_text())
    config["run"]["folder"] = str(tmp_path / "runs/x")
    (tmp_path / "runs/x/config.yaml").write_text(yaml.safe_dump(config))
    before[tmp_path / "runs/x/config.yaml"] = (tmp_path / "runs/x/config.yaml").stat().st_mtime_ns
    other = {"run": {"folder": str(tmp_path / "fresh")}, "model": {"lr": 0.001}}
    (tmp_path / "other.yaml").write_text(yaml.safe_dump(other))
    assert main(["fit", f"--config={tmp_path / 'runs/x'}", f"--config={tmp_path / 'other.yaml'}"]) == 0
    assert read_config(tmp_path / "fresh/weights")["acmix_zoo"]["name"].startswith("test_resnet")
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "runs/x").rglob("*")} == before


def test_a_second_config_may_change_the_data_and_what_to_resume(
    photo_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "more").mkdir()
    monkeypatch.chdir(tmp_path)
    recorded = yaml.safe_load((photo_run / "config.yaml").read_text())
    config = Namespace(
        config=[photo_run / "config.yaml", tmp_path / "other.yaml"],
        run=Namespace(folder=recorded["run"]["folder"]),
        data=Namespace({**recorded["data"], "source": "more"}),
        model=Namespace(recorded["model"]),
        ckpt_path="other.ckpt",
    )
    choose_run_folder(config, "acmix-zoo fit")
    assert (config.data.source, config.ckpt_path) == ("more", "other.ckpt")
    assert config.run.folder == str(photo_run)


def test_a_folder_named_like_the_network_is_not_its_model(
    photo_run: Path, photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`acmix-zoo pull org/test_resnet` creates such a folder."""
    shutil.copytree(photo_run / "weights", tmp_path / "test_resnet")
    monkeypatch.chdir(tmp_path)
    assert main(["validate", f"--config={photo_run}"]) == 0
    assert "--model.model" not in capsys.readouterr().out
    image = next((photos / "test").rglob("*.png"))
    assert main(["classify", str(image), f"--model={photo_run / 'checkpoints/best.ckpt'}"]) == 0


@pytest.mark.parametrize("has_splits", [False, True])
def test_a_run_does_not_write_between_its_images(photos: Path, tmp_path: Path, has_splits: bool) -> None:
    data = tmp_path / "photos"
    shutil.copytree(photos if has_splits else photos / "train", data)
    (data / "earlier/checkpoints").mkdir(parents=True)
    (data / "earlier/config.yaml").touch()
    source = open_source(data)
    allowed = ["elsewhere", "photos2", "photos/runs", "photos/runs/a/b", "photos/earlier", "photos/new"]
    refused = ["photos", *([] if has_splits else ["photos/class1", "photos/class1/x", "photos/new/a"])]
    if has_splits:
        allowed += ["photos/new/a", "photos/train/new"]
        refused += ["photos/train", "photos/test/class1/x"]
    for folder in allowed:
        check_run_folder(tmp_path / folder, source)
    for folder in refused:
        with pytest.raises(ValueError, match=r"the run folder .* is inside .*/runs/NAME"):
            check_run_folder(tmp_path / folder, source)


def test_a_run_in_a_class_folder_is_refused_before_it_writes(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(photos / "train", tmp_path / "photos")
    assert main(fit_arguments(tmp_path / "photos", tmp_path / "photos/class1")) == 1
    assert "photos/class1 is inside" in capsys.readouterr().err
    assert {path.suffix for path in (tmp_path / "photos/class1").iterdir()} == {".png"}
