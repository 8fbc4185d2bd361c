"""Fine-tuning in a child process: progress, stopping, failures, and that no photo stays on disk."""

from __future__ import annotations

import sys
import zipfile
from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

pytest.importorskip("lightning")

from acmix_zoo.app import fine_tuning
from acmix_zoo.app.archive import PhotoArchive, read_archive
from acmix_zoo.app.decision import load_network, top_classes
from acmix_zoo.app.fine_tuning import FineTuning, Progress
from acmix_zoo.cli.train import find_start, split_fit_options


def coloured_photos(per_class: int = 12) -> PhotoArchive:
    """Return an archive of two classes that differ in colour."""
    buffer, generator = BytesIO(), np.random.default_rng(0)
    with zipfile.ZipFile(buffer, "w") as file:
        for name, level in (("dark", 60), ("light", 200)):
            for i in range(per_class):
                image, photo = BytesIO(), generator.normal(level, 20, (40, 40, 3)).clip(0, 255).astype(np.uint8)
                Image.fromarray(photo).save(image, "PNG")
                file.writestr(f"{name}/{i}.png", image.getvalue())
    return read_archive(buffer.getvalue(), "lights.zip")


def files_in(folder: Path) -> list[str]:
    return [path.name for path in folder.rglob("*") if path.is_file()]


@pytest.mark.slow
def test_it_trains_and_gives_weights_that_classify(tmp_path: Path) -> None:
    tuning = FineTuning(tmp_path)
    *_, last = tuning.train(coloured_photos(), "acmix_resnet_pico.fashion_mnist", epochs=4)
    assert last.weights and last.archive, last.log
    assert [row["epoch"] for row in last.history] == [1, 2, 3, 4] and "val/top1" in last.history[-1]
    assert last.message.startswith("Finished. The best epoch has ") and str(tmp_path) not in last.log
    network = load_network(str(last.weights))
    assert next(iter(top_classes(network, Image.new("RGB", (50, 40), (210, 200, 190))))) == "light"
    with zipfile.ZipFile(last.archive) as file:
        assert {"config.json", "model.safetensors", "README.md"} <= set(file.namelist())
    plots = {"curves.png", "confusion.png"}  # of the model card
    assert {name for name in files_in(tmp_path) if name.endswith((".png", ".ckpt"))} == plots
    tuning.close()
    assert not list(tmp_path.iterdir())


def steps_with(
    script: str, folder: Path, monkeypatch: pytest.MonkeyPatch, stop_after: int | None = None
) -> list[Progress]:
    """Return the progress of a training that runs a script in the run folder in place of `acmix-zoo train`.

    Once the first epoch has been seen, there is a file `seen` next to `folder`.
    """

    def command(photos: PhotoArchive, data: Path, run: Path, start: str, epochs: int) -> Sequence[str]:
        run.mkdir()
        assert len(list(data.glob("*/*.png"))) == 24
        return [sys.executable, "-S", "-c", f"import os, time; os.chdir({str(run)!r})\n{script}"]

    monkeypatch.setattr(fine_tuning, "_train_command", command)
    monkeypatch.setattr(fine_tuning, "_SECONDS", 0.02)
    tuning, steps = FineTuning(folder), []
    for step in tuning.train(coloured_photos(), "acmix_resnet_pico", epochs=2):
        steps.append(step)
        left = files_in(folder)
        if step.history:
            (folder.parent / "seen").touch()
        if len(step.history) == stop_after:
            tuning.stop()
    assert not left, "the last progress is shown when no photo and no other file is left"
    return steps


ONE_EPOCH = "open('metrics.csv', 'w').write('epoch,train/loss,val/top1\\n1,0.5,0.75\\n')\n"


def test_stopping_ends_the_process_and_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_with(f"{ONE_EPOCH}time.sleep(60)", tmp_path, monkeypatch, stop_after=1)
    assert steps[-1].message == "Training was stopped, so there are no weights." and steps[-1].weights is None
    assert steps[-1].history == [{"epoch": 1.0, "train/loss": 0.5, "val/top1": 0.75}]
    assert any(step.message == "Epoch 2 of 2 …" for step in steps)


def test_the_curve_grows_during_training(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second epoch ends when the page has shown the first."""
    (tmp_path / "own").mkdir()
    wait = f"while not os.path.exists({str(tmp_path / 'seen')!r}): time.sleep(0.01)\n"
    second = "open('metrics.csv', 'a').write('2,0.25,1.0\\n')"
    steps = steps_with(ONE_EPOCH + wait + second, tmp_path / "own", monkeypatch)
    assert list(dict.fromkeys(len(step.history) for step in steps)) == [0, 1, 2]


def test_a_failure_shows_the_error_of_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    steps = steps_with(
        "print('data: lights'); print('acmix-zoo: error: no space left'); raise SystemExit(1)", tmp_path, monkeypatch
    )
    assert steps[-1].message == "Training failed: no space left" and "data: lights" in steps[-1].log


def test_a_visitor_who_leaves_ends_the_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(
        fine_tuning, "_train_command", lambda *_: [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
    )
    tuning = FineTuning(tmp_path)
    progress = tuning.train(coloured_photos(), "acmix_resnet_pico", epochs=2)
    next(progress), next(progress)
    process = tuning._process
    assert process and process.poll() is None
    progress.close()
    assert process.poll() is not None and not files_in(tmp_path)


def test_the_command_is_train_and_starts_from_the_chosen_weights() -> None:
    start = "acmix_swin_pico.fashion_mnist"
    words = fine_tuning._train_command(coloured_photos(4), Path("d"), Path("r"), start, 3)
    own, further = split_fit_options(words[words.index("train") + 1 :])
    assert own == ["d", f"--model={start}", "--epochs=3", "--out=r"]
    assert {"--data.batch_size=2", "--run.tag=lights"} <= set(further)
    assert find_start(start, from_scratch=False).options["data.image_size"] == "32"


def test_weights_can_be_given_by_a_relative_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The training runs in another folder."""
    (tmp_path / "runs/mine").mkdir(parents=True)
    (tmp_path / "acmix_swin_pico").mkdir()  # the network of this name is meant
    monkeypatch.chdir(tmp_path)
    for start, expected in (("runs/mine", tmp_path / "runs/mine"), ("acmix_swin_pico", "acmix_swin_pico")):
        words = fine_tuning._train_command(coloured_photos(), Path("data"), Path("run"), start, 1)
        assert f"--model={expected}" in words
