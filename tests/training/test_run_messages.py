"""The messages of a run, and what it refuses before it starts."""

import csv
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

pytest.importorskip("lightning")

import lightning as L
from lightning.pytorch.callbacks import ProgressBar
from support.training import (
    InterruptTest,
    SignalBeforeFirstStep,
    callback_option,
    fit_arguments,
    make_data,
    make_image_folder,
    make_task,
    make_trainer,
)

from acmix_zoo.cli.main import main
from acmix_zoo.cli.trainer import TrainingCLI
from acmix_zoo.tasks import ClassificationTask
from acmix_zoo.training.logs import Bar
from acmix_zoo.training.run import RunFolder
from acmix_zoo.training.signals import Interrupted
from acmix_zoo.weights import check_folder, create_model, read_config

ROOT = Path(__file__).parents[2]


@pytest.fixture(scope="module")
def image_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """train/ and test/ of three classes."""
    folder = tmp_path_factory.mktemp("photos") / "photos"
    make_image_folder(folder / "train")
    make_image_folder(folder / "test", per_class=4)
    return folder


@pytest.fixture(scope="module")
def done(image_folder: Path) -> Path:
    """A finished run beside the images, started in their folder with relative paths."""
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(image_folder.parent)
        assert main(fit_arguments(Path("photos"), Path("runs/x"), ckpt_path="last")) == 0
    return image_folder.parent / "runs/x"


# ---- before the first step


@pytest.mark.parametrize("recipe", ["folder", "full", "linear_probe", "swin_warm_start"])
def test_a_recipe_without_images_is_refused(recipe: str, capsys: pytest.CaptureFixture[str]) -> None:
    """The command fails before anything is built, instead of training on images that the user did not choose."""
    assert main(["fit", "--config", str(ROOT / f"recipes/finetune/{recipe}.yaml")]) == 1
    error = capsys.readouterr().err
    assert "fit needs images, but --data.source is missing" in error and "Add --data.source" in error


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"trainer__limit_train_batches": 0}, "--trainer.limit_train_batches 0 leaves nothing to train on"),
        ({"trainer__enable_checkpointing": "false"}, "leaves no checkpoint from which to finish or resume the run"),
        ({"trainer__accelerator": "gpu"}, "finds no GPU here. Use --trainer.accelerator cpu"),
        ({"trainer__accelerator": "tpu"}, "Lightning rejected the --trainer options"),
        ({"trainer__max_epochs": 0}, "max_epochs=0, but the schedule depends on the length of the run"),
        ({"trainer__max_epochs": -1}, "max_epochs=-1, but the schedule"),
        ({"trainer__strategy": "nonsense"}, "an invalid strategy name: `strategy='nonsense'`"),
        ({"model__model": "test_vit"}, "test_vit cannot process images of 32 × 32 pixels"),
        ({"model__model": "test_vit"}, "--data.image_size 160, or build it for this size with --model.model_kwargs"),
        ({"model__model_kwargs": "{nonsense: 1}"}, "test_resnet cannot be built with model_kwargs={'nonsense': 1}"),
        ({"model__lr": 0}, "lr=0.0 was given; expected a number above 0"),
        ({"model__momentum": 1}, "momentum=1.0 was given; expected"),
        ({"model__ema_decay": 2}, "ema_decay=2.0 was given; expected"),
        ({"model__layer_decay": 0}, "expected a factor per layer in (0, 1]"),
    ],
    ids=lambda value: "-".join(map(str, value.items())) if isinstance(value, dict) else "",
)
def test_what_cannot_work_is_refused(
    options: dict[str, Any], words: str, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    if options.get("trainer__accelerator") == "gpu" and torch.cuda.is_available():
        pytest.skip("there is a GPU")
    assert main(fit_arguments(image_folder, tmp_path / "run", **options)) == 1
    said = capsys.readouterr()
    error = said.err
    assert words in error and "Traceback" not in error
    assert "New run" not in said.out and not (tmp_path / "run").exists()


def test_the_size_check_leaves_the_modes_of_a_network_alone(image_folder: Path) -> None:
    task = make_task(linear_probe=True)
    task.train()
    before = [module.training for module in task.modules()]
    make_trainer(enable_checkpointing=False).validate(task, make_data(image_folder / "train"), verbose=False)
    task.train()
    assert [module.training for module in task.modules()] == before


@pytest.mark.slow
def test_a_run_says_what_it_starts_from(image_folder: Path, tmp_path: Path) -> None:
    """A separate process would show every message of Lightning's."""
    words = fit_arguments(image_folder, tmp_path / "run", model__ema_decay=0.9, ckpt_path="last")
    command = [sys.executable, "-m", "acmix_zoo.cli", *words]
    said = subprocess.run(command, capture_output=True, text=True, check=True)
    assert f"New run in {tmp_path / 'run'}" in said.stdout
    line = next(line for line in said.stdout.splitlines() if line.startswith("Model: "))
    assert "test_resnet (0.373 M parameters), trained from scratch; images are resized to 32 × 32 pixels" in line
    assert "device: cpu" in line
    everything = said.stdout + said.stderr
    for noise in ("TPU", "FLOPs", "current_model_state", "logging interval", "does not exist yet", "Warning", "Tip"):
        assert noise not in everything, noise
    assert "top-5" not in everything  # of three classes


def test_a_start_from_weights_is_named(done: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = done / "weights"
    assert main(fit_arguments(done.parents[1] / "photos", tmp_path / "run", model__pretrained=weights)) == 0
    assert f"fine-tuned from {read_config(weights)['acmix_zoo']['name']};" in capsys.readouterr().out


def test_a_batch_larger_than_the_data_scales_the_rate_by_what_it_has(
    image_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    task = make_task(lr=0.1, base_batch_size=27)
    make_trainer(epochs=1, enable_checkpointing=False).fit(task, make_data(image_folder / "train", batch_size=512))
    assert "27 images per step; learning rate 0.1 = 0.1 × 27 / 27" in capsys.readouterr().out
    assert task.trainer.optimizers[0].param_groups[0]["initial_lr"] == pytest.approx(0.1)


def test_accumulation_over_more_batches_than_there_are(image_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The last batch of an epoch always ends with an optimiser step, even if fewer batches were accumulated."""
    trainer = make_trainer(epochs=1, enable_checkpointing=False, accumulate_grad_batches=100)
    trainer.fit(make_task(lr=0.1, base_batch_size=24), make_data(image_folder / "train", batch_size=8))
    assert "1 × 8 × 3 accumulated = 24 images per step" in capsys.readouterr().out
    assert trainer.global_step == 1


# ---- where a run is


def test_experiments_have_folders_of_their_own(
    image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Folders are named after the recipe, or the network, and the data."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "light.yaml").write_text(yaml.safe_dump({"model": {"lr": 0.01}}))
    assert main(fit_arguments(image_folder, None)) == 0
    assert main([*fit_arguments(image_folder, None), "--config=light.yaml"]) == 0
    assert sorted(path.name for path in (tmp_path / "runs").iterdir()) == ["light-photos", "test_resnet-photos"]


@pytest.mark.parametrize("command", ["validate", "test"])
def test_a_run_is_evaluated_from_elsewhere(
    done: Path, command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """`--config ../runs/x/config.yaml` uses that folder, and finds the data relative to where the run was started."""
    (done.parents[1] / "elsewhere").mkdir(exist_ok=True)
    monkeypatch.chdir(done.parents[1] / "elsewhere")
    assert main([command, "--config=../runs/x/config.yaml"]) == 0
    split = {"validate": "val", "test": "test"}[command]
    record = read_config(done / "weights")["acmix_zoo"]
    (score,) = [m["value"] for m in record["metrics"] if m["split"] == split]
    said = capsys.readouterr().out
    assert f"{split}: top-1 {100 * score:.2f} %, loss " in said and "best.ckpt" in said


def test_a_run_folder_can_be_moved(done: Path, image_folder: Path, tmp_path: Path) -> None:
    shutil.copytree(done, tmp_path / "moved")
    assert main(["validate", f"--config={tmp_path / 'moved/config.yaml'}", f"--data.source={image_folder}"]) == 0
    source = f"--data.predict={image_folder / 'test/class1'}"
    assert main(["predict", f"--config={tmp_path / 'moved/config.yaml'}", source]) == 0
    assert (tmp_path / "moved/predictions.csv").exists() and not (done / "predictions.csv").exists()


def test_a_moved_run_finds_its_data(
    done: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """config.yaml has absolute paths, which another folder with the name of the data cannot shadow."""
    config = yaml.safe_load((done / "config.yaml").read_text())
    assert (config["data"]["source"], config["run"]["folder"]) == (str(image_folder), str(done))
    shutil.copytree(done, tmp_path / "alone/runs/x")
    make_image_folder(tmp_path / "alone/photos/train", classes=2)
    monkeypatch.chdir(tmp_path / "alone")
    assert main(["validate", "--config=runs/x"]) == 0  # the other photos have too few classes
    # moved together with its data, while the old place is gone
    for name in ("runs/x", "photos"):
        shutil.copytree(image_folder.parent / name, tmp_path / "project" / name)
    path = tmp_path / "project/runs/x/config.yaml"
    path.write_text(path.read_text().replace(str(image_folder.parent), "/gone"))
    capsys.readouterr()
    assert main(["validate", f"--config={path}"]) == 0
    words = f"Using --data.source {tmp_path / 'project/photos'}: /gone/photos does not exist"
    assert words in capsys.readouterr().out
    shutil.rmtree(tmp_path / "project/photos")
    assert main(["validate", f"--config={path}"]) == 1
    error = capsys.readouterr().err
    assert "Looked for /gone/photos. Set the location with --data.source" in error


def test_a_relative_path_in_a_config(
    done: Path, image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configs of earlier versions have relative paths; the command says which folder it uses."""
    shutil.copytree(done, tmp_path / "moved")
    config = yaml.safe_load((done / "config.yaml").read_text())
    config["data"]["source"], config["run"]["folder"] = "../photos", "../runs/x"
    (tmp_path / "moved/config.yaml").write_text(yaml.safe_dump(config))
    monkeypatch.chdir(tmp_path / "moved")
    assert main(["validate", "--config=config.yaml"]) == 1
    assert f"Looked for {tmp_path / 'photos'}. Set the location with --data.source" in capsys.readouterr().err
    monkeypatch.chdir(image_folder)
    assert main(["validate", f"--config={tmp_path / 'moved'}"]) == 0
    said = capsys.readouterr().out
    assert f"Using --data.source {image_folder}: " in said and "has the relative path ../photos" in said


def test_predictions_are_kept(
    done: Path, image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(done, tmp_path / "run")
    for split in ("test/class1", "train/class2", "test/class0"):
        source = f"--data.predict={image_folder / split}"
        assert main(["predict", f"--config={tmp_path / 'run/config.yaml'}", source]) == 0
    said = capsys.readouterr().out
    assert f"Saved the predictions for 4 images to {tmp_path / 'run/predictions.csv'}" in said
    assert "the previous ones are now in predictions-2.csv" in said
    places = []
    for name in ("predictions", "predictions-1", "predictions-2"):
        with (tmp_path / f"run/{name}.csv").open(newline="") as file:
            places.append({Path(row["path"]).parent.name for row in csv.DictReader(file)})
    assert places == [{"class0"}, {"class1"}, {"class2"}]


# ---- the end of a run


def test_records_are_rounded(done: Path) -> None:
    record = read_config(done / "weights")["acmix_zoo"]
    assert all(m["value"] == round(m["value"], 6) for m in record["metrics"])
    assert 0 < record["minutes"] < 5
    assert {m["name"] for m in record["metrics"]} == {"top1"}


def test_a_run_without_validation_says_so(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(fit_arguments(image_folder / "train", tmp_path / "run", data__val_fraction=0)) == 0
    assert "train: not evaluated, because there was no validation or test split" in capsys.readouterr().out
    assert main(["validate", f"--config={tmp_path / 'run/config.yaml'}"]) == 1
    assert "train has no validation images to evaluate on" in capsys.readouterr().err


def test_scores_of_a_part_of_a_split_are_not_recorded(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = {"trainer__limit_val_batches": 1, "trainer__limit_test_batches": 1}
    assert main(fit_arguments(image_folder, tmp_path / "run", **options)) == 0
    printed = capsys.readouterr().out
    assert "so the scores of val and test are not recorded" in printed
    assert "photos: no complete score, because options of the trainer left out images" in printed
    assert read_config(tmp_path / "run/weights")["acmix_zoo"]["metrics"] == []


def test_a_training_that_diverged_says_so(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    code = main(
        fit_arguments(image_folder, tmp_path / "run", model__lr=1e12, model__warmup_epochs=0, trainer__max_epochs=2)
    )
    error = capsys.readouterr().err
    assert code == 1 and "lower model.lr" in error and "replayed" not in error


def test_weights_of_half_precision_are_finished(image_folder: Path, tmp_path: Path) -> None:
    """The folder has the average in float32."""
    options = {"trainer__precision": "bf16-true", "model__ema_decay": 0.9, "model__lr": 0.01}
    assert main(fit_arguments(image_folder, tmp_path / "run", **options)) == 0
    assert check_folder(tmp_path / "run/weights") == []
    best = torch.load(tmp_path / "run/checkpoints/best.ckpt", weights_only=True)["state_dict"]
    written = create_model(tmp_path / "run/weights").state_dict()
    assert all(torch.equal(value, best[f"model.{name}"]) for name, value in written.items())


def test_an_interrupted_test_says_that_the_training_is_safe(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    handler = signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background job ignores it
    words = fit_arguments(image_folder, tmp_path / "run", ckpt_path="last")
    try:
        with pytest.raises(Interrupted) as stop:
            main([*words, f"--trainer.callbacks={callback_option(InterruptTest)}"])
    finally:
        signal.signal(signal.SIGINT, handler)
    assert stop.value.code == 128 + signal.SIGINT
    said = capsys.readouterr().out
    assert f"the best weights are in {tmp_path / 'run/checkpoints/best.ckpt'}" in said
    assert "Run the same command again to complete them" in said
    assert main(words) == 0
    assert check_folder(tmp_path / "run/weights") == []


def test_what_to_do_after_an_interruption(image_folder: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    assert run.resume_message == "Nothing had been saved yet."
    make_trainer(run, epochs=1).fit(ClassificationTask("test_resnet", num_classes=3), make_data(image_folder / "train"))
    assert "pass it to Trainer.fit as ckpt_path" in run.resume_message
    run.options = {"model.model": "test_resnet"}
    assert run.resume_message.endswith("run the same command again with --ckpt_path last to resume.")
    run.resumes_by_itself = True
    assert run.resume_message.endswith("run the same command again to resume.")


def test_bars_count_epochs_from_one(tmp_path: Path) -> None:
    bar = Bar()
    bar._trainer = L.Trainer(max_epochs=12, logger=False, enable_checkpointing=False, accelerator="cpu")
    assert [bar._get_train_description(epoch).strip() for epoch in (0, 11)] == ["Epoch 1/12", "Epoch 12/12"]


@pytest.mark.parametrize(
    ("options", "bars"),
    [
        ({}, ["Bar"]),
        ({"trainer__enable_progress_bar": "false"}, []),
        ({"trainer__callbacks": "TQDMProgressBar"}, ["TQDMProgressBar"]),
        ({"trainer__callbacks": "[LearningRateMonitor, TQDMProgressBar]"}, ["TQDMProgressBar"]),
        ({"trainer__callbacks": "DeviceStatsMonitor"}, ["Bar"]),
    ],
    ids=str,
)
def test_a_terminal_shows_one_bar_or_none(
    options: dict[str, str], bars: list[str], image_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []

    def look(cli: TrainingCLI, _: str) -> None:
        seen.extend(type(c).__name__ for c in cli.trainer.callbacks if isinstance(c, ProgressBar))

    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    monkeypatch.setattr(TrainingCLI, "_run_subcommand", look)
    assert main(fit_arguments(image_folder, tmp_path / "run", **options)) == 0
    assert seen == bars


# ---- config.yaml of a run, and interruptions


def test_the_config_of_a_run_resumes_it(
    done: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """It states `ckpt_path: null`, which repeats the run in another folder, but is no reason to refuse this one."""
    shutil.copytree(done, tmp_path / "runs/x")
    (tmp_path / "photos").symlink_to(done.parents[1] / "photos")
    monkeypatch.chdir(tmp_path)
    words = ["fit", "--config=runs/x/config.yaml"]
    assert main(words) == 0
    assert "is finished: 1 of 1 epochs" in capsys.readouterr().out
    assert main([*words, "--trainer.max_epochs=2"]) == 0
    assert "Resuming from epoch 2 of 2" in capsys.readouterr().out
    assert read_config(tmp_path / "runs/x/weights")["acmix_zoo"]["epochs"] == 2
    assert main([*words, "--run.folder=runs/y"]) == 0
    assert "New run in runs/y" in capsys.readouterr().out


def heed_ctrl_c() -> None:
    """A background job of a shell, and with it pytest, may ignore Ctrl-C."""
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@pytest.mark.parametrize(
    ("name", "line"),
    [("SIGINT", "interrupted"), pytest.param("SIGTERM", "stopped by SIGTERM", marks=pytest.mark.slow)],
)
def test_a_signal_before_the_first_step(name: str, line: str, image_folder: Path, tmp_path: Path) -> None:
    """One line and the exit code of the signal; no folder is left."""
    callback = callback_option(SignalBeforeFirstStep, name=name)
    words = fit_arguments(image_folder, tmp_path / "run", trainer__callbacks=callback)
    command = [sys.executable, "-m", "acmix_zoo.cli", *words]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), str(ROOT / "tests")])}
    said = subprocess.run(command, capture_output=True, text=True, env=environment, preexec_fn=heed_ctrl_c)
    assert said.returncode == 128 + getattr(signal, name)
    assert [row for row in said.stderr.splitlines() if "Seed set" not in row and row] == [f"acmix-zoo: {line}"]
    assert not (tmp_path / "run").exists()


def test_ctrl_c_while_importing(tmp_path: Path) -> None:
    """A stand-in for torch sends the signal; the command line has not been reached yet."""
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGINT)\n")
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(tmp_path), str(ROOT)])}
    said = subprocess.run(
        [sys.executable, "-m", "acmix_zoo.cli", "list"],
        capture_output=True, text=True, env=environment, preexec_fn=heed_ctrl_c,
    )  # fmt: skip
    assert (said.returncode, said.stderr.strip()) == (130, "acmix-zoo: interrupted")


def test_ctrl_c_in_any_command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    def interrupt(_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("acmix_zoo.cli.list.list_networks", interrupt)
    assert main(["list"]) == 130
    assert capsys.readouterr().err.strip() == "acmix-zoo: interrupted"
