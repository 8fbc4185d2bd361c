"""The command line, from a folder of pictures to a weight folder that classifies; and what it says to bad input."""

import csv
import json
import os
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
from support.training import make_image_folder, no_large_files

from acmix_zoo.cli.classify import classify
from acmix_zoo.cli.main import main
from acmix_zoo.weights import check_folder, read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def pictures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ with three classes; validation is cut from train/."""
    folder = tmp_path_factory.mktemp("pictures")
    make_image_folder(folder / "train")
    make_image_folder(folder / "test", per_class=4)
    return folder


def arguments(pictures: Path, run: Path, *more: str) -> list[str]:
    """Of a fit of three epochs of three steps."""
    options = {
        "model.model": "test_resnet",
        "model.ema_decay": "0.9",
        "model.lr": "0.01",
        "data.source": pictures,
        "data.image_size": "32",
        "data.batch_size": "8",
        "data.val_fraction": "0.25",
        "trainer.max_epochs": "3",
        "trainer.accelerator": "cpu",
        "trainer.enable_model_summary": "false",
        "run.folder": run,
    }
    return ["fit", *(f"--{key}={value}" for key, value in options.items()), *more]


@pytest.fixture(scope="module")
def run(pictures: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(arguments(pictures, folder, "--run.tag=colours", "--run.license=mit")) == 0
    return folder


def rows(run: Path) -> list[dict[str, str]]:
    with (run / "metrics.csv").open() as file:
        return list(csv.DictReader(file))


def state(path: Path) -> dict[str, torch.Tensor]:
    checkpoint: dict[str, dict[str, torch.Tensor]] = torch.load(path, weights_only=True)
    return checkpoint["state_dict"]


def same(a: Path, b: Path) -> bool:
    first, second = state(a), state(b)
    return first.keys() == second.keys() and all(torch.equal(first[key], second[key]) for key in first)


# ---- a run and what it leaves behind


def test_run_folder_is_complete(run: Path) -> None:
    assert {p.name for p in run.iterdir()} == {
        *("config.yaml", "metrics.csv", "curves.png", "tensorboard", "checkpoints", "weights", ".lock")
    }
    assert {p.name for p in (run / "checkpoints").iterdir()} == {"best.ckpt", "last.ckpt", "previous.ckpt"}
    assert (run / "curves.png").read_bytes()[:4] == b"\x89PNG"
    assert any(p.name.startswith("events.out") for p in (run / "tensorboard").iterdir())
    assert [row["epoch"] for row in rows(run)] == ["1", "2", "3"]
    assert set(rows(run)[0]) == {
        *("epoch", "step", "train/loss", "val/loss", "val/top1", "lr", "seconds", "images_per_second"),
        *("speed/images_per_second", "speed/data_wait", "speed/mfu", "speed/eta_minutes"),
    }


def test_weight_folder_proves_itself_and_has_the_record(run: Path, pictures: Path) -> None:
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
    assert f" --data.source={pictures.name} " in record["command"] and "--run.folder=first" in record["command"]
    scores = {(m["split"], m["name"]): m["value"] for m in record["metrics"]}
    assert scores["val", "top1"] == pytest.approx(max(float(row["val/top1"]) for row in rows(run)), abs=1e-5)
    assert scores["test", "top1"] > 0.6


def test_the_saved_configuration_gives_the_same_weights(run: Path, tmp_path: Path) -> None:
    assert main(["fit", "--config", str(run / "config.yaml"), f"--run.folder={tmp_path / 'again'}"]) == 0
    assert same(run / "checkpoints/last.ckpt", tmp_path / "again/checkpoints/last.ckpt")


def test_a_run_is_reproduced_from_its_portable_record(run: Path, tmp_path: Path) -> None:
    """The record does not say where the data is, but the run's own config.yaml does."""
    assert main(["reproduce", str(run), "--run.folder", str(tmp_path / "again")]) == 0
    assert same(run / "checkpoints/best.ckpt", tmp_path / "again/checkpoints/best.ckpt")


@pytest.mark.parametrize(("command", "config"), [("validate", "config.yaml"), ("test", "")])  # "": the run folder
def test_evaluation_repeats_the_record(
    command: str, config: str, run: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    before = {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()}
    assert main([command, "--config", str(run / config)]) == 0
    split = {"validate": "val", "test": "test"}[command]
    record = read_config(run / "weights")["acmix_zoo"]
    expected = {m["name"]: m["value"] for m in record["metrics"] if m["split"] == split}
    shown = capsys.readouterr().out
    assert f"{split}: top-1 {100 * expected['top1']:.2f} %, loss " in shown
    assert {p: p.stat().st_mtime_ns for p in run.rglob("*") if p.is_file()} == before


def test_predict_and_classify_agree(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    source = pictures / "test/class1"
    assert main(["predict", "--config", str(run / "config.yaml"), f"--data.predict={source}"]) == 0
    with (run / "predictions.csv").open() as file:
        predicted = list(csv.DictReader(file))
    (run / "predictions.csv").unlink()
    assert sorted(Path(row["path"]).name for row in predicted) == [f"{i}.png" for i in range(4)]
    capsys.readouterr()
    results = classify([str(run / "weights"), *(row["path"] for row in predicted), "--top", "2"])
    for row, ((label, probability), second) in zip(predicted, results, strict=True):
        assert row["class"] == label
        assert float(row["probability"]) == pytest.approx(probability, abs=1e-3)
        assert second[1] <= probability
    out, error = capsys.readouterr()
    assert out.splitlines()[0] == predicted[0]["path"] and out.splitlines()[1].endswith(f" %  {predicted[0]['class']}")
    assert "knows 3 classes (class0, class1, class2); every image is assigned to one of them" in error


@pytest.mark.parametrize(
    "weights", ["", "config.yaml", "weights", "weights/model.safetensors", "checkpoints/best.ckpt"]
)
def test_classify_a_folder_by_any_part_of_a_run(
    weights: str, run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    results = classify([str(run / weights), str(pictures / "test"), "--top", "1"])
    assert len(results) == 12 and capsys.readouterr().out.count(" %  class") == 12
    (tmp_path / "empty").mkdir()
    fails(["classify", str(run), str(tmp_path / "empty")], capsys, "empty", "no images")


def test_classify_names_what_it_skips(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The other pictures are classified; only a file that was named explicitly makes the command fail."""
    phone = tmp_path / "phone"
    shutil.copytree(pictures / "test/class0", phone)
    for name in ("a.heic", "b.heic", "c.svg", "d.dng", "e.pdf", "list.txt"):
        (phone / name).write_text("-")
    (phone / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    weights, picture = str(run / "weights"), str(phone / "0.png")
    assert main(["classify", weights, str(phone), "--top=1"]) == 0
    out, error = capsys.readouterr()
    assert out.count(" %  class") == 4
    assert f"{phone}: skipped 2 .heic files (first: a.heic): to read them, `pip install pillow-heif`" in error
    assert "skipped 1 .svg file" in error and "skipped 1 .dng file" in error and "skipped 1 .pdf file" in error
    assert "skipped 1 other file: .txt 1" in error and f"skipped image {phone / 'damaged.jpg'} cannot be read" in error

    (tmp_path / "empty").mkdir()
    given = [phone / "a.heic", phone / "c.svg", tmp_path / "no.png", tmp_path / "empty"]
    words = ["4 of the given images", "For .heic files: to read them, `pip install pillow-heif`", "no.png does not"]
    fails(["classify", weights, *map(str, given), picture, "--top=1"], capsys, *words, "empty contains no images")
    assert main(["classify", weights, str(phone / "a.heic"), picture, "--top=1"]) == 1
    out, error = capsys.readouterr()
    assert out.count(" %  class") == 1 and "For .heic files: to read them" in error


def test_predict_names_what_it_skips(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    phone = tmp_path / "phone"
    shutil.copytree(pictures / "test/class0", phone)
    (phone / "a.heic").write_text("-")
    (phone / "damaged.jpg").write_bytes(b"\xff\xd8\xff")
    command = ["predict", f"--config={run / 'config.yaml'}", f"--run.folder={tmp_path / 'predicted'}"]
    command += [f"--ckpt_path={run / 'checkpoints/best.ckpt'}"]
    assert main([*command, f"--data.predict={phone}"]) == 0
    out = capsys.readouterr().out
    assert f"{phone}: skipped 1 .heic file (first: a.heic): to read them, `pip install pillow-heif`" in out
    assert f"{phone}: 1 file cannot be predicted: image {phone / 'damaged.jpg'} cannot be read" in out
    assert "Saved the predictions for 4 images" in out
    fails([*command, f"--data.predict={phone / 'a.heic'}"], capsys, "For .heic files: to read them, `pip")


def test_classify_needs_no_training_libraries(run: Path, pictures: Path) -> None:
    code = (
        "import sys; from acmix_zoo.cli.main import main\n"
        f"code = main(['classify', {str(run / 'weights')!r}, {str(pictures / 'test/class0/0.png')!r}])\n"
        "bad = {'lightning', 'datasets', 'torchmetrics', 'jsonargparse'} & set(sys.modules)\n"
        "sys.exit(f'imported {bad}' if bad else code)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "class" in done.stdout


def test_a_first_stage_leaves_the_test_split_alone(pictures: Path, tmp_path: Path) -> None:
    assert main(arguments(pictures, tmp_path / "stage1", "--trainer.max_epochs=1", "--run.test=false")) == 0
    metrics = read_config(tmp_path / "stage1" / "weights")["acmix_zoo"]["metrics"]
    assert {m["split"] for m in metrics} == {"val"}


def test_fine_tuning_starts_from_a_weight_folder(run: Path, tmp_path: Path) -> None:
    """Of other classes than the weights'; the record names where they came from."""
    other = make_image_folder(tmp_path / "other", classes=2)
    folder = tmp_path / "tuned"
    more = [f"--model.pretrained={run / 'weights'}", "--trainer.max_epochs=1", "--model.layer_decay=0.5"]
    assert main(arguments(other, folder, *more)) == 0
    config = read_config(folder / "weights")
    assert config["num_classes"] == 2
    assert config["acmix_zoo"]["parent"] == "test_resnet.colours"
    assert {m["split"] for m in config["acmix_zoo"]["metrics"]} == {"val"}  # there is no test split


# ---- interrupted


def test_kill_and_resume(pictures: Path, tmp_path: Path, run: Path) -> None:
    """kill -9 after the first epoch, then --ckpt_path last: the run ends as if nothing had happened."""
    folder = tmp_path / "killed"
    command = arguments(pictures, folder, "--run.tag=colours", "--run.license=mit")
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
    assert same(run / "checkpoints/last.ckpt", folder / "checkpoints/last.ckpt")
    assert [row["epoch"] for row in rows(folder)] == ["1", "2", "3"]
    assert check_folder(folder / "weights") == []
    assert yaml.safe_load((folder / "config.yaml").read_text())["ckpt_path"] is None


def test_finished_run_only_finishes_again(
    pictures: Path, run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As after a kill between the last epoch and the weight folder."""
    shutil.copytree(run, tmp_path / "run")
    run = tmp_path / "run"
    before = state(run / "checkpoints/last.ckpt")
    digest = read_config(run / "weights")["acmix_zoo"]["sha256"]
    (run / "weights/model.safetensors").unlink()
    assert main(["fit", "--config", str(run / "config.yaml"), "--ckpt_path=last"]) == 0
    assert "train loss" not in capsys.readouterr().out
    assert torch.equal(before["model.fc.weight"], state(run / "checkpoints/last.ckpt")["model.fc.weight"])
    assert read_config(run / "weights")["acmix_zoo"]["sha256"] == digest
    assert len(rows(run)) == 3


def test_full_disk_at_the_very_end(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Training is over, the weight folder does not fit: the message says where the weights are, and a retry works."""
    folder = tmp_path / "run"
    command = arguments(pictures, folder, "--trainer.max_epochs=1")
    assert main(command) == 0
    (folder / "weights" / "README.md").write_text("kept")
    (folder / "weights" / "model.safetensors").unlink()
    with no_large_files():
        assert main([*command, "--ckpt_path=last"]) == 1
    error = capsys.readouterr().err
    assert "could not be written" in error and str(folder / "checkpoints/best.ckpt") in error
    assert (folder / "weights" / "README.md").read_text() == "kept"
    assert main([*command, "--ckpt_path=last"]) == 0
    assert check_folder(folder / "weights") == []


# ---- slow


@pytest.mark.slow
@pytest.mark.parametrize(
    "program",
    [[sys.executable, "-m", "acmix_zoo.cli"], [Path(sys.executable).parent / "acmix-zoo"]],
    ids=["module", "script"],
)
def test_two_processes_count_every_image_once(program: list[Any], pictures: Path, tmp_path: Path) -> None:
    """In a process of its own: a launcher that starts processes has no place in the one that runs the tests. Lightning
    starts the second as the first was started."""
    folder = tmp_path / "two"
    more = ["--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=2", "--data.batch_size=4"]
    done = subprocess.run([*program, *arguments(pictures, folder, *more)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    record = read_config(folder / "weights")["acmix_zoo"]
    assert record["environment"]["devices"] == 2
    value = next(m["value"] for m in record["metrics"] if (m["split"], m["name"]) == ("val", "top1"))
    assert value * 9 == pytest.approx(round(value * 9), abs=1e-4)  # nine images validate, none twice
    assert check_folder(folder / "weights") == []


@pytest.mark.slow
def test_compile(pictures: Path, tmp_path: Path, run: Path) -> None:
    """The real compiler; its weights fit the network that is not compiled."""
    command = arguments(pictures, tmp_path / "run", "--model.compile=true", "--trainer.max_epochs=1")
    assert main(command) == 0
    assert state(tmp_path / "run/checkpoints/best.ckpt").keys() == state(run / "checkpoints/best.ckpt").keys()
    assert check_folder(tmp_path / "run/weights") == []


# ---- bad input: one line that helps, no traceback


def fails(command: list[str], capsys: pytest.CaptureFixture[str], *words: str) -> None:
    assert main(command) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    line = next(line for line in error.splitlines() if line.startswith("acmix-zoo: error: "))
    assert all(word in line for word in words), line


def test_unknown_model(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(pictures, tmp_path / "run", "--model.model=acmix_resnet_pcio")
    fails(command, capsys, "unknown model 'acmix_resnet_pcio'", "acmix_resnet_pico")


def test_missing_data(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(arguments(tmp_path / "nothing", tmp_path / "run"), capsys, str(tmp_path / "nothing"))


def test_checkpoint_of_another_model(
    run: Path, pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = f"--ckpt_path={run / 'checkpoints/best.ckpt'}"
    words = ("was started with model.model test_resnet", "--model.pretrained")
    fails(arguments(pictures, tmp_path / "a", "--model.model=test_efficientnet", given), capsys, *words)
    two = make_image_folder(tmp_path / "two", classes=2)
    fails(arguments(two, tmp_path / "b", given), capsys, "another model", "with 3 classes", "with 2")


def test_a_run_is_not_overwritten(run: Path, pictures: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fails(arguments(pictures, run), capsys, "already contains a run", "--ckpt_path last")


def test_missing_checkpoints(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    command = arguments(pictures, tmp_path / "run")
    fails([*command, "--ckpt_path=none.ckpt"], capsys, "none.ckpt does not exist", "last, best")
    fails(["test", *command[1:]], capsys, "no weights to test", "--model.pretrained")
    fails(["test", *command[1:], "--ckpt_path=best"], capsys, "best.ckpt does not exist")


def test_damaged_checkpoint(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "half.ckpt"
    path.write_bytes(os.urandom(1000))
    fails([*arguments(pictures, tmp_path / "run"), f"--ckpt_path={path}"], capsys, str(path), "not a checkpoint")
    torch.save({"weight": torch.zeros(2)}, path)
    fails([*arguments(pictures, tmp_path / "run"), f"--ckpt_path={path}"], capsys, "--model.pretrained")


def test_classify_bad_input(run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights, broken = str(run / "weights"), tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG....")
    fails(["classify", weights, str(tmp_path / "no.png")], capsys, "no.png")
    fails(["classify", weights, str(broken)], capsys, str(broken))
    fails(["classify", str(tmp_path / "nothing"), str(broken)], capsys, "nothing")
    fails(["classify", str(tmp_path), str(broken)], capsys, str(tmp_path))
    with pytest.raises(SystemExit) as stop:
        main(["classify", weights])
    assert stop.value.code == 2


def test_unknown_option_is_named(pictures: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main(arguments(pictures, tmp_path / "run", "--model.learning_rate=1"))
    assert stop.value.code == 2
    assert "learning_rate" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--model.lrr", "1"], "unknown option --model.lrr; did you mean --model.lr"),
        (["--lr=1"], "unknown option --lr; did you mean --model.lr"),
        (["--data.batchsize=1"], "unknown option --data.batchsize; did you mean --data.batch_size"),
        (["--model.optimizer=adamm"], "--model.optimizer: expected one of 'adamw', 'sgd'. Got adamm"),
        (["--model.lr=fast"], "--model.lr: expected a number. Got fast"),
        (["stray"], "unexpected argument 'stray'"),
        (["--config", "misspelt.yaml"], "in the configuration, unknown option --model.lrr; did you mean --model.lr"),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_bad_options_in_one_line(
    options: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("misspelt.yaml").write_text("model:\n  lrr: 1\n")
    with pytest.raises(SystemExit) as stop:
        main(["fit", "--model.model=test_resnet", *options])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert (
        lines[-2].startswith(f"acmix-zoo fit: error: {message}")
        and lines[-1] == "All options: acmix-zoo fit --help-all"
    )
    assert len(lines) == 2 and "typing" not in lines[0]


def test_bad_options_of_other_commands(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["classify", "weights", "a.png", "--topp", "3"])
    assert "acmix-zoo classify: error: unknown option --topp; did you mean --top?" in capsys.readouterr().err


def test_record_is_plain(run: Path, pictures: Path) -> None:
    """config.json can be read back, and neither it nor the card names a folder of this machine."""
    text = (run / "weights/config.json").read_text()
    assert json.loads(text)["acmix_zoo"]["command"]
    for written in (text, (run / "weights/README.md").read_text()):
        for place in (Path.home(), Path.cwd(), run.parent, pictures.parent):
            assert str(place) not in written


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["fit", "--confg", "x.yaml"], "unknown option --confg; did you mean --config?"),
        (["fit", "--con", str(ROOT / "recipes/finetune/folder.yaml")], "unknown option --con; did you mean --config?"),
        (["fit", "--model.model", "x", "--data.sourc", "y"], "unknown option --data.sourc; did you mean --data.source"),
        (["fit", "--lr", "1"], "unknown option --lr; did you mean --model.lr"),
        (["fit", "--data.source", "x"], "missing option --model.model"),
        (
            ["fit", "--config", "recipes/finetune/foldr.yaml"],
            "The closest names are finetune/folder",
        ),
        (["fit", "--config", "recipes/finetune"], "--config recipes/finetune is a folder without a config.yaml"),
        (["verify", "x", "--dat", "y"], "acmix-zoo verify: error: unknown option --dat; did you mean --data?"),
        (["classify", "x", "y", "--to=3"], "acmix-zoo classify: error: unknown option --to; did you mean --top?"),
        (["data", "x", "--label", "y"], "unknown option --label; did you mean --label_column?"),
        (["list", "--pre"], "unknown option --pre; did you mean --pretrained?"),
        (["export", "x", "y", "--no"], "unknown option --no; did you mean --no-ema?"),
        (["plan", "x", "--gp", "1"], "unknown option --gp; did you mean --gpus or --gpu or --gpus-per-node?"),
        (["bench", "acmix_resnet_pico", "--rep", "1"], "unknown option --rep; did you mean --repeats?"),
    ],
    ids=lambda value: " ".join(value[:3:2]) if isinstance(value, list) else "",
)
def test_incomplete_options_and_paths_are_refused_with_a_hint(
    words: list[str], hint: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Options cannot be abbreviated: an incomplete one would set another option than was meant."""
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        main(words)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert hint in error and f"All options: acmix-zoo {words[0]} --help" in error
    assert len(error.splitlines()) == 2


@pytest.mark.parametrize("command", ["reproduce", "plan"])
def test_the_closest_recipe_is_named(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main([command, "recipes/fashion_mnist/acmix_resnet_pic.yaml"]) == 1
    assert "The closest names are fashion_mnist/acmix_resnet_pico" in capsys.readouterr().err
