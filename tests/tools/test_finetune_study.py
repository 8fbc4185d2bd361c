"""The fine-tuning study draws its training images by seed, and trains every run that its table lacks."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")

from tools import finetune_study, fit_runs, read_table
from tools.finetune_study import RUNS, Run, command, main, make_images


@pytest.fixture
def photos(tmp_path: Path) -> Path:
    """A folder of two classes with 8 training, 2 validation and 2 test images each."""
    for split, count in (("train", 8), ("validation", 2), ("test", 2)):
        for level, name in enumerate(("dark", "light")):
            folder = tmp_path / "photos" / split / name
            folder.mkdir(parents=True)
            for i in range(count):
                Image.fromarray(np.full((40, 40, 3), 200 * level + i, np.uint8)).save(folder / f"{i}.png")
    return tmp_path / "photos"


def images_of(folder: Path) -> dict[str, list[str]]:
    return {
        split: sorted(str(path.relative_to(folder / split)) for path in (folder / split).glob("*/*"))
        for split in ("train", "validation", "test")
    }


def test_training_images_are_drawn_by_seed(photos: Path, tmp_path: Path) -> None:
    drawn = {seed: images_of(make_images(photos, tmp_path / "a", 3, seed)) for seed in (0, 1)}
    assert drawn[0] == images_of(make_images(photos, tmp_path / "b", 3, 0))
    assert drawn[0]["train"] != drawn[1]["train"]
    everything = images_of(photos)
    for images in drawn.values():
        assert [name.split("/")[0] for name in images["train"]] == ["dark"] * 3 + ["light"] * 3
        assert set(images["train"]) < set(everything["train"])
        assert images["validation"] == everything["validation"] and images["test"] == everything["test"]
    assert images_of(make_images(photos, tmp_path / "a", 0, 0)) == everything


def test_runs_have_different_names() -> None:
    assert len({run.name for run in RUNS}) == len(RUNS)


def test_only_pretrained_networks_have_smaller_rates_in_lower_layers(tmp_path: Path) -> None:
    """Training from scratch would be handicapped by the recipe's layer decay."""
    for run in RUNS:
        words = command(run, tmp_path, tmp_path)
        rates = [words[i + 1] for i, word in enumerate(words) if word == "--model.layer_decay"]
        assert rates == (["null"] if run.start == "scratch" else [])


def test_a_failed_run_ends_the_study_without_a_row(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(finetune_study, "EPOCHS", {4: 2})
    monkeypatch.setattr(finetune_study, "RUNS", [Run("fashion_mnist", "linear", 4, seed) for seed in (0, 1)])
    commands: list[list[str]] = []
    monkeypatch.setattr(fit_runs, "main", lambda words: commands.append(words) or 143)
    with pytest.raises(SystemExit, match="143"):
        main(photos, tmp_path / "runs", is_list=False)
    assert len(commands) == 1 and commands[0][0] == "fit" and not (tmp_path / finetune_study.TABLE).exists()


@pytest.mark.slow
def test_a_run_is_recorded_and_not_repeated(
    photos: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "benchmarks").mkdir()
    monkeypatch.setattr(finetune_study, "SIZE", 32)
    monkeypatch.setattr(finetune_study, "EPOCHS", {4: 2})
    run = Run("fashion_mnist", "linear", 4, 0)
    monkeypatch.setattr(finetune_study, "RUNS", [run])
    main(photos, tmp_path / "runs", is_list=False)
    (row,) = read_table(tmp_path / finetune_study.TABLE)
    assert (row["start"], row["mode"], row["per_class"], row["seed"], row["images"]) == (*map(str, run), "8")
    assert 0 <= float(row["top1"]) <= 1
    capfd.readouterr()
    main(photos, tmp_path / "runs", is_list=False)
    assert capfd.readouterr().out == "" and len(read_table(tmp_path / finetune_study.TABLE)) == 1
    main(photos, tmp_path / "runs", is_list=True)
    assert capfd.readouterr().out.split() == [run.name, "finished"]


def test_commands_name_existing_options(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    from acmix_zoo.cli.main import main as acmix_zoo

    with pytest.raises(SystemExit) as stop:
        acmix_zoo(["fit", "--help-all"])
    assert stop.value.code == 0
    known = capsys.readouterr().out
    for run in (Run("scratch", "full", 5, 0), Run("tiny_imagenet", "linear", 0, 2)):
        options = [word for word in command(run, tmp_path, tmp_path) if word.startswith("--")]
        assert len(options) > 8
        assert [option for option in options if option not in known] == []
