"""`acmix-zoo train`: the recipe that it fills in, its run folders, early stopping and errors."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lightning")

from support.box_data import write_coco, write_voc
from support.commands import assert_fails, run_command
from support.image_data import write_files
from support.streams import write_shards
from support.tasks import write_masked_images
from support.training import CrashInSecondEpoch, callback_option

from acmix_zoo.cli.data import check_class_folders
from acmix_zoo.cli.main import main
from acmix_zoo.cli.run_folder import next_run_folder
from acmix_zoo.cli.train import RECIPE, find_start, split_fit_options
from acmix_zoo.weights import read_config
from acmix_zoo.weights.recipe_files import find_recipe

TINY = ["--model", "test_resnet", "--from-scratch", "--size", "32", "--trainer.accelerator", "cpu"]


def test_a_folder_of_photos_becomes_a_run(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The printed `fit` command, the record and config.yaml state the same, and the suggested command works."""
    monkeypatch.chdir(tmp_path)
    run = Path("runs") / photos.name
    out = run_command(capsys, "train", photos, *TINY, "--epochs", 1)
    command = out.splitlines()[0]
    assert command.startswith(f"acmix-zoo fit --config {RECIPE} --data.source {photos} --run.folder {run} ")
    record = read_config(run / "weights")["acmix_zoo"]
    assert record["recipe"] == f"recipes/{RECIPE}.yaml" and record["name"] == f"test_resnet.{photos.name}"
    assert shlex.split(record["command"])[:3] == shlex.split(command)[:3]
    config = yaml.safe_load((run / "config.yaml").read_text())
    assert (config["data"]["image_size"], config["trainer"]["max_epochs"]) == (32, 1)
    assert config["model"]["model"] == "test_resnet" and config["model"]["pretrained"] is False
    suggested = re.findall(r"^  acmix-zoo (.*)$", out.partition("\nNext:\n")[2], re.MULTILINE)
    assert [line.split()[0] for line in suggested] == ["classify", "explain", "export"]
    assert "class" in run_command(capsys, *shlex.split(suggested[0]))


def test_an_interrupted_run_is_resumed_with_the_printed_command(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """The same command would start a new run, and says so."""
    monkeypatch.chdir(tmp_path)
    command = ["train", str(photos / "test"), "--out", "runs/mine", *TINY, "--epochs", "2", "--data.batch_size=4"]
    assert main([*command, f"--trainer.callbacks={callback_option(CrashInSecondEpoch)}"]) == 1
    out = capsys.readouterr().out
    assert "run `acmix-zoo fit --config runs/mine` to resume." in out
    assert "Resuming from epoch 2 of 2" in run_command(
        capsys, "fit", "--config", "runs/mine", "--trainer.callbacks", "null"
    )


def test_run_folders_are_numbered(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert next_run_folder("some/photos/") == (Path("runs/photos"), None)
    Path("runs/photos/weights").mkdir(parents=True)
    Path("runs/photos/checkpoints").mkdir()
    assert next_run_folder("photos") == (Path("runs/photos-2"), None)
    Path("runs/photos-2/checkpoints").mkdir(parents=True)
    assert next_run_folder("photos") == (Path("runs/photos-3"), Path("runs/photos-2"))
    assert next_run_folder(".").path == Path("runs") / tmp_path.name


def test_a_run_stops_early(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """With this learning rate, the accuracy never improves."""
    more = ["--out", tmp_path / "run", "--epochs", 5, "--patience", 1, "--model.lr=1e-12"]
    out = run_command(capsys, "train", photos / "test", *TINY, *more)
    assert "Stopped early after epoch 2 of 5: val/top1 has not improved in 1 validation\n" in out
    assert read_config(tmp_path / "run/weights")["acmix_zoo"]["epochs"] == 2


class TestStart:
    def test_images_are_prepared_as_the_weights_expect(self, tmp_path: Path) -> None:
        start = find_start("acmix_swin_pico", from_scratch=False)
        cfg = read_config(find_weights("acmix_swin_pico.fashion_mnist"))["pretrained_cfg"]
        assert start.options == {
            "model.model": "acmix_swin_pico",
            "data.image_size": "32",
            "data.mean": str(list(cfg["mean"])),
            "data.std": str(list(cfg["std"])),
        }
        folder = find_weights("acmix_swin_pico.fashion_mnist")
        assert find_start(str(folder), from_scratch=False).options == {**start.options, "model.model": str(folder)}

    def test_a_checkpoint_and_its_run_give_the_same_images(self, photo_run: Path) -> None:
        of_run = find_start(str(photo_run), from_scratch=False).options
        checkpoint = str(photo_run / "checkpoints/best.ckpt")
        assert of_run["data.image_size"] == "32"
        assert find_start(checkpoint, from_scratch=False).options == {**of_run, "model.model": checkpoint}

    def test_a_network_without_weights_is_trained_from_scratch(self) -> None:
        start = find_start("acmix_resnet50", from_scratch=False)
        assert start.options["model.pretrained"] == "false" and start.options["data.image_size"] == "224"
        assert start.remarks == ["There are no pretrained weights for acmix_resnet50, so it is trained from scratch"]

    def test_weights_cannot_be_left_out_of_a_weight_folder(self) -> None:
        folder = find_weights("acmix_swin_pico.fashion_mnist")
        with pytest.raises(ValueError, match=r"is a weight folder\. Expected the name of a network\."):
            find_start(str(folder), from_scratch=True)

    def test_without_a_model_the_recipe_decides(self) -> None:
        assert find_start(None, from_scratch=False).options == {}
        assert find_start(None, from_scratch=True).options == {"model.pretrained": "false"}


def find_weights(name: str) -> Path:
    from acmix_zoo.weights.fetch import weight_folder

    return weight_folder(name)


def test_options_of_fit_are_passed_on() -> None:
    arguments = ["photos", "--data.num_workers", "2", "--epochs", "3", "--model.lr=0.1", "--trainer.callbacks+=A"]
    own, further = split_fit_options(arguments)
    assert own == ["photos", "--epochs", "3"]
    assert further == ["--data.num_workers", "2", "--model.lr=0.1", "--trainer.callbacks+=A"]


@pytest.mark.slow
def test_classes_of_a_stream_are_not_balanced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The number of images of each class is not known."""
    write_shards(tmp_path / "set", "webdataset", (12, 8))
    streamed = ["--data.streaming", "true", "--data.val_fraction", "0", "--out", tmp_path / "run", "--epochs", 1]
    out = run_command(capsys, "train", tmp_path / "set", *TINY, *streamed)
    assert "class_weights" not in out and "set: not evaluated" in out


def test_the_help_states_the_epochs_of_the_recipe(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["train", "--help"])
    recipe = find_recipe(RECIPE)
    assert recipe is not None
    epochs = yaml.safe_load(recipe.read_text())["trainer"]["max_epochs"]
    text = capsys.readouterr().out
    assert f"(default: {epochs})" in text and len(text.splitlines()) <= 32


class TestErrors:
    @pytest.mark.parametrize(
        ("arguments", "message"),
        [
            ([], "the following arguments are required: FOLDER"),
            (["photos", "--epoch", "3"], "unknown option --epoch; did you mean --epochs?"),
            (["photos", "--epochs", "0"], "--epochs 0 is too small. Use 1 or more"),
            (["photos", "--out", __file__], f"--out {__file__} is a file. Expected the name of a folder"),
            (["photos", "--data.num_worker=2"], "unknown option --data.num_worker; did you mean --data.num_workers"),
        ],
        ids=lambda value: " ".join(value) if isinstance(value, list) else "",
    )
    def test_wrong_arguments(self, arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
        with pytest.raises(SystemExit) as stop:
            main(["train", *arguments])
        assert stop.value.code == 2 and message in capsys.readouterr().err

    def test_a_folder_or_model_that_does_not_exist(self, photos: Path, capsys: pytest.CaptureFixture[str]) -> None:
        assert_fails(["train", str(photos.parent / "potos")], capsys, "potos", "does not exist")
        assert_fails(["train", str(photos), "--model", "acmix_resnet_pic"], capsys, "acmix_resnet_pico")

    def test_weights_that_cannot_be_downloaded(
        self, photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        """The tests run without the Hub."""
        words = ["train", str(photos), "--model", "resnet18", "--out", str(tmp_path / "run")]
        assert_fails(words, capsys, "the weights of resnet18 are timm/resnet18", "cannot be reached", "--from-scratch")
        assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("layout", "task"), [("COCO", "detect/bccd"), ("Pascal VOC", "detect/bccd"), ("masks", "segment/camvid")]
)
def test_data_of_another_task_are_refused_with_the_command_to_use(
    layout: str, task: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Otherwise, images/ and masks/ would be two classes."""
    folder = tmp_path / "my data"
    if layout == "COCO":
        write_coco(folder)
    elif layout == "Pascal VOC":
        write_voc(folder, {"train": [[("a", (1, 2, 20, 20))]]})
    else:
        write_masked_images(folder)
    command = f"acmix-zoo fit --config {task} --data.source '{folder}'"
    fit = ["fit", "--config", "finetune/linear_probe", "--run.folder", str(tmp_path / "run"), "--data.source"]
    for words in (["train"], fit):
        assert_fails(
            [*words, str(folder)], capsys, f"{folder} looks like a ", "one subfolder of images per class", command
        )
    assert not (tmp_path / "run").exists()


def test_a_table_with_classes_may_be_beside_masks(tmp_path: Path) -> None:
    write_masked_images(tmp_path)
    with pytest.raises(ValueError, match="looks like a segmentation data set"):
        check_class_folders(str(tmp_path))
    image = next(tmp_path.glob("images/**/*.png")).relative_to(tmp_path)
    (tmp_path / "metadata.csv").write_text(f"file_name,label\n{image},cat\n")
    check_class_folders(str(tmp_path))


def test_labels_for_yolo_are_not_taken_for_masks(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write_files(tmp_path / "yolo", "images/1.png")
    (tmp_path / "yolo/labels").mkdir()
    (tmp_path / "yolo/labels/1.txt").write_text("0 0.5 0.5 0.1 0.1")
    assert_fails(["train", str(tmp_path / "yolo")], capsys, "contain no images: labels (1 .txt file)")
