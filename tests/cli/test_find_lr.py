"""`acmix-zoo fit --run.find_lr true`: what it prints and writes, and the runs that it is refused for."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import pytest
import yaml

pytest.importorskip("lightning")

from support.commands import assert_fails, run_command
from support.tasks import TASKS, TaskCase, skip_without_packages
from support.training import fit_arguments, three_epochs

from acmix_zoo.cli.find_lr import with_learning_rate
from acmix_zoo.cli.main import main
from acmix_zoo.cli.run_folder import check_run_folder
from acmix_zoo.data.sources.folder_source import FolderSource
from acmix_zoo.weights.recipe_files import find_recipe


def suggestion(out: str, folder: Path) -> tuple[float, list[str]]:
    """Return the suggested rate and the command that trains with it, and check that nothing else was written."""
    rate = re.search(r"^Suggested learning rate: (\S+) \(now 1e-05\)\. The losses are in (\S+)$", out, re.MULTILINE)
    assert rate and Path(rate[2]) == folder / "learning_rate.png"
    assert [path.name for path in folder.iterdir()] == ["learning_rate.png"]
    assert Path(rate[2]).read_bytes().startswith(b"\x89PNG")
    _, *command = shlex.split(out.splitlines()[-1])
    assert command[-2:] == ["--model.lr", rate[1]] and not any("find_lr" in word for word in command)
    return float(rate[1]), command


def test_a_rate_is_suggested_and_nothing_is_trained(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acmix_zoo.training.learning_rate_finder.STEPS", 50)
    arguments = fit_arguments(photos, tmp_path / "run", model__lr=1e-5, run__find_lr=True, ckpt_path="last")
    rate, _ = suggestion(run_command(capsys, *arguments), tmp_path / "run")
    assert 1e-5 < rate < 1


def test_a_run_next_to_the_classes_is_not_taken_for_a_class(
    photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("acmix_zoo.training.learning_rate_finder.STEPS", 20)
    shutil.copytree(photos / "train", tmp_path / "photos")
    arguments = fit_arguments(tmp_path / "photos", tmp_path / "photos/run", model__lr=1e-5, run__find_lr=True)
    main(arguments)  # whether a rate is found or not
    assert (tmp_path / "photos/run/learning_rate.png").is_file()
    source = FolderSource(tmp_path / "photos")
    assert source.class_names == ("class0", "class1", "class2")
    check_run_folder(tmp_path / "photos/run", source)


@pytest.mark.slow
@pytest.mark.parametrize("task", TASKS, ids=lambda task: task.name)
def test_the_printed_command_trains_with_the_rate(
    task: TaskCase, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The picture of the losses stays in the folder of the run."""
    skip_without_packages(task)
    source, folder = task.write_data(tmp_path / "data"), tmp_path / "run"
    rate, command = suggestion(
        run_command(capsys, *task.fit(source, folder, model__lr=1e-5, run__find_lr=True)), folder
    )
    assert f"New run in {folder}" in run_command(capsys, *command)
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["lr"] == rate and config["run"]["find_lr"] is False
    assert (folder / "learning_rate.png").is_file() and (folder / "weights").is_dir()


def test_no_suggestion_is_an_error(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """A frozen network with SGD and these rates learns nothing in three steps."""
    arguments = fit_arguments(photos, tmp_path / "run", run__find_lr=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("acmix_zoo.training.learning_rate_finder.STEPS", 3)
        assert_fails(arguments, capsys, "made the loss fall clearly in 3 steps", "Keep --model.lr")
    assert (tmp_path / "run/learning_rate.png").is_file()


def test_a_run_that_has_begun_is_refused(photos: Path, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = sorted(path.name for path in run.iterdir())
    arguments = three_epochs(photos, run, "--run.find_lr=true", "--ckpt_path=last")
    assert_fails(arguments, capsys, "--run.find_lr needs a new run", "Choose a different --run.folder")
    assert sorted(path.name for path in run.iterdir()) == before


def test_a_dry_run_is_refused(photos: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    arguments = fit_arguments(photos, tmp_path / "run", run__find_lr=True, trainer__fast_dev_run=True)
    assert_fails(arguments, capsys, "fast_dev_run", "Leave out")


def test_the_command_that_trains() -> None:
    recipe = find_recipe("finetune/folder")
    given = f"acmix-zoo fit --config {recipe} --data.source 'my photos' --run.find_lr=true --model.lr 0.1 --a.b+=C"
    expected = "acmix-zoo fit --config finetune/folder --data.source 'my photos' --a.b+ C --model.lr 0.0012"
    assert with_learning_rate(given, 0.00123) == expected
    of_recipe = with_learning_rate("acmix-zoo fit --config mine.yaml", 0.00123)
    assert of_recipe == "acmix-zoo fit --config mine.yaml --run.find_lr false --model.lr 0.0012"
