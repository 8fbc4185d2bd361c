"""Which options may change for a resumed or finished run, on the command line and in Python."""

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import yaml
from support.training import make_data, make_task, make_trainer, resume_command

from acmix_zoo.cli.main import main
from acmix_zoo.training import RunFolder
from acmix_zoo.weights import read_config

# ---- a stopped run, on the command line


def file_contents(folder: Path) -> dict[str, bytes]:
    return {str(p): p.read_bytes() for p in folder.rglob("*") if p.is_file() and p.name != ".lock"}


@pytest.mark.parametrize(
    ("option", "value", "recorded"),
    [
        ("model.lr", 0.1, "0.001"),
        ("model.weight_decay", 0.5, "0.05"),
        ("model.momentum", 0.5, "0.9"),
        ("model.optimizer", "sgd", "adamw"),
        ("model.layer_decay", 0.5, "null"),
        ("model.linear_probe", "true", "false"),
        ("model.ema_decay", 0.9, "null"),
        ("data.augment", "none", "light"),
        ("data.seed", 1, "0"),
        ("seed_everything", 1, "0"),
        ("trainer.gradient_clip_val", 1.0, "null"),
        ("trainer.limit_val_batches", 1, "null"),
    ],
    ids=lambda value: str(value),
)
@pytest.mark.parametrize("run", ["stopped", pytest.param("finished", marks=pytest.mark.slow)])
def test_options_that_change_the_result_are_rejected(
    runs: Path, run: str, option: str, value: Any, recorded: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_contents(runs / run)
    assert main(resume_command(runs, run, **{option.replace(".", "__"): value})) == 1
    error = capsys.readouterr().err
    assert f"was started with {option} {recorded}, but this command has {option} {value}" in error
    assert f"Resume with --{option} {recorded}, or choose a different --run.folder" in error
    assert "Traceback" not in error and len(error.strip().splitlines()[-1]) < 400
    assert file_contents(runs / run) == before


def test_a_changed_batch_size_is_rejected(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(resume_command(runs, "stopped", data__batch_size=4)) == 1
    assert "--data.batch_size 8" in capsys.readouterr().err
    assert main(resume_command(runs, "finished", data__batch_size=4)) == 1  # the data of a finished run is not read
    assert "is finished and was trained with data.batch_size 8" in capsys.readouterr().err


@pytest.mark.parametrize("arguments", [["validate"], ["fit"]], ids=lambda words: words[0])
def test_renamed_classes_are_rejected(
    runs: Path, tmp_path: Path, arguments: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    """Renamed classes would otherwise be silently treated as the old ones."""
    image_folder = shutil.copytree(runs / "images", tmp_path / "images")
    (image_folder / "class0").rename(image_folder / "zebra")
    if arguments == ["fit"]:
        words = resume_command(runs, "stopped", data__source=image_folder)
    else:
        words = [*arguments, f"--config={runs / 'finished/config.yaml'}", f"--data.source={image_folder}"]
    assert main(words) == 1
    assert (
        "the classes of images are not those of the checkpoint. Missing: class0; new: zebra." in capsys.readouterr().err
    )


def test_options_that_leave_the_result_alone_may_change(runs_copy: Path) -> None:
    """The weights equal those of an uninterrupted run, and the record lists only changes that matter."""
    options = {"trainer__log_every_n_steps": 1, "data__num_workers": 1, "run__save_every": 1}
    assert main(resume_command(runs_copy, "stopped", **options)) == 0
    resumed, uninterrupted = (
        torch.load(runs_copy / run / "checkpoints/last.ckpt", weights_only=True)["state_dict"]
        for run in ("stopped", "finished")
    )
    assert all(torch.equal(value, uninterrupted[key]) for key, value in resumed.items())
    record = read_config(runs_copy / "stopped/weights")["acmix_zoo"]
    assert [set(change["options"]) for change in record["changes"]] == [{"trainer.callbacks"}]  # no crash
    assert yaml.safe_load((runs_copy / "stopped/config.yaml").read_text())["trainer"]["log_every_n_steps"] == 1


def test_more_epochs_take_effect_and_are_recorded(runs_copy: Path) -> None:
    assert main(resume_command(runs_copy, "finished", trainer__max_epochs=3)) == 0
    record = read_config(runs_copy / "finished/weights")["acmix_zoo"]
    assert (record["epochs"], record["steps"]) == (3, 6)
    assert record["changes"] == [{"step": 4, "options": {"trainer.max_epochs": [2, 3]}}]
    assert "--trainer.max_epochs=3" in record["command"]


def test_fewer_epochs_than_were_trained_are_rejected(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = file_contents(runs / "finished")
    assert main(resume_command(runs, "finished", trainer__max_epochs=1)) == 1
    assert "has already reached epoch 2, but this command has --trainer.max_epochs 1" in capsys.readouterr().err
    assert file_contents(runs / "finished") == before


# ---- a run that is finished


def test_a_finished_run_is_reported_and_not_changed(runs: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, record = file_contents(runs / "finished"), read_config(runs / "finished/weights")["acmix_zoo"]
    capsys.readouterr()
    assert main(resume_command(runs, "finished")) == 0
    printed = capsys.readouterr().out
    assert f"The run in {runs / 'finished'} is finished: 2 of 2 epochs" in printed
    assert f"best epoch {record['best_epoch']}; val accuracy" in printed
    assert f"Its weights are in {runs / 'finished/weights'}. Nothing was changed." in printed
    assert "--trainer.max_epochs 4" in printed
    assert main(resume_command(runs, "finished", data__num_workers=1, trainer__log_every_n_steps=7)) == 0
    assert file_contents(runs / "finished") == before


@pytest.mark.parametrize(("option", "value"), [("run.tag", "other"), ("run.license", "mit"), ("run.test", "false")])
def test_options_of_the_model_card_are_rejected_for_a_finished_run(
    runs: Path, option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    before = file_contents(runs / "finished")
    assert main(resume_command(runs, "finished", **{option.replace(".", "__"): value})) == 1
    assert f"is finished and was trained with {option} " in capsys.readouterr().err
    assert file_contents(runs / "finished") == before


def test_missing_weights_are_written_again_with_the_original_command(runs_copy: Path) -> None:
    """The command that writes them is not the command that trained them, and so it is not recorded."""
    first = read_config(runs_copy / "finished/weights")["acmix_zoo"]
    shutil.rmtree(runs_copy / "finished/weights")
    shutil.rmtree(runs_copy / "finished/tensorboard")
    assert main(["fit", f"--config={runs_copy / 'finished/config.yaml'}", "--ckpt_path=last"]) == 0
    again = read_config(runs_copy / "finished/weights")["acmix_zoo"]
    assert again["command"] == first["command"] and again["sha256"] == first["sha256"] and "changes" not in again


# ---- the same in Python


def test_a_task_with_different_hyperparameters_is_not_resumed(runs: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    make_trainer(run, epochs=1).fit(make_task(lr=0.001), make_data(runs / "images"))
    with pytest.raises(ValueError, match=r"with lr 0\.001, momentum 0\.9, but this task has lr 0\.1, momentum 0\.5"):
        make_trainer(epochs=2, enable_checkpointing=False).fit(
            make_task(lr=0.1, momentum=0.5), make_data(runs / "images"), ckpt_path=run.last, weights_only=True
        )
    different = make_task(lr=0.1, weight_decay=0.3)  # evaluation does not use them
    make_trainer(enable_checkpointing=False).validate(
        different, make_data(runs / "images"), ckpt_path=run.last, verbose=False, weights_only=True
    )


def test_a_checkpoint_without_options_is_compared_by_its_hyperparameters(
    runs_copy: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    last = runs_copy / "stopped/checkpoints/last.ckpt"
    content = torch.load(last, weights_only=True)
    del content["callbacks"]["RunFolder"]["options"]
    torch.save(content, last)
    assert main(resume_command(runs_copy, "stopped", model__lr=0.1)) == 1
    assert "was started with model.lr 0.001, but this command has model.lr 0.1" in capsys.readouterr().err


@pytest.mark.parametrize("beside", ["best", "a later best", "damaged", pytest.param("none", marks=pytest.mark.slow)])
def test_a_run_that_continues_in_another_folder_has_best_weights(
    beside: str, runs: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """No later epoch is better here, so they are those of the first run, if they are still there."""
    first, second = RunFolder(str(tmp_path / "first")), RunFolder(str(tmp_path / "second"))
    make_trainer(first, epochs=1).fit(make_task(), make_data(runs / "images"))
    for path, score in ((first.last, 2.0), (first.best, 2.0 if beside == "best" else 3.0)):
        content = torch.load(path, weights_only=True)
        state = content["callbacks"]["RunFolder"]
        state["best"] = [score] * len(state["best"])
        path.unlink()  # the two are hard links to one file
        torch.save(content, path)
    best, has_best = first.best.read_bytes(), beside == "best"
    if beside == "none":
        first.best.unlink()
    if beside == "damaged":
        first.best.write_bytes(b"0")
    make_trainer(second, epochs=2).fit(make_task(), make_data(runs / "images"), ckpt_path=first.last, weights_only=True)
    assert (second.best.read_bytes() == best) == has_best
    warned = f"Warning: {first.best} is missing, damaged or was saved later. The best weights will be chosen"
    assert (warned in capsys.readouterr().out) != has_best
    assert torch.load(second.best, weights_only=True)["epoch"] == (0 if has_best else 1)


def test_a_folder_in_the_place_of_the_weights_is_noticed_before_training(runs: Path, tmp_path: Path) -> None:
    run = RunFolder(str(tmp_path / "run"))
    (tmp_path / "run/weights").mkdir(parents=True)
    (tmp_path / "run/weights/notes.txt").write_text("mine")
    with pytest.raises(FileExistsError, match="run/weights exists and is not a weight folder"):
        make_trainer(run).fit(make_task(), make_data(runs / "images"))
    assert not run.last.exists() and (tmp_path / "run/weights/notes.txt").read_text() == "mine"
