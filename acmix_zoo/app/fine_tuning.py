"""Fine-tune a network on uploaded photos with `acmix-zoo train` in a child process, and report its progress."""

from __future__ import annotations

import csv
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from tempfile import TemporaryDirectory, mkdtemp
from typing import NamedTuple

import timm

import acmix_zoo
from acmix_zoo.app.archive import PhotoArchive, unpack

_SECONDS = 0.5  # between two looks at the run
_SECONDS_TO_STOP = 20.0  # a run finishes its current step first


class Progress(NamedTuple):
    """What the page shows of a training run.

    Attributes:
        message: one sentence.
        history: a row of metrics for each epoch so far, such as {"epoch": 1.0, "train/loss": 0.9, "val/top1": 0.5}.
        log: what the run has printed.
        archive: the weight folder as a zip archive, once it is written.
        weights: the weight folder, once it is written.
    """

    message: str
    history: list[dict[str, float]]
    log: str
    archive: Path | None = None
    weights: Path | None = None


class FineTuning:
    """The training runs of one visitor, one at a time, and the weights that they produce.

    Args:
        root: a folder that the owner of the page removes in the end. The weights go into a folder within it.
    """

    def __init__(self, root: Path) -> None:
        self._folder = Path(mkdtemp(dir=root))
        self._process: subprocess.Popen[bytes] | None = None
        self._is_stopped = False

    def train(self, photos: PhotoArchive, start: str, epochs: int) -> Iterator[Progress]:
        """Train, and yield the progress until the weight folder is written, the training fails, or it is stopped.

        The photos are deleted before the last progress is yielded.

        Args:
            photos: the training images.
            start: the network and its initial weights, as for `acmix_zoo.create_model`.
            epochs: number of epochs.
        """
        self._is_stopped = False
        with TemporaryDirectory(dir=self._folder, ignore_cleanup_errors=True) as work:  # `close` may be faster
            data, run, log = Path(work, photos.name), Path(work, "run"), Path(work, "log.txt")
            unpack(photos.content, data)
            yield Progress("Starting …", [], "")
            with log.open("wb") as file:
                self._process = subprocess.Popen(
                    _train_command(photos, data, run, start, epochs),
                    stdin=subprocess.DEVNULL, stdout=file, stderr=subprocess.STDOUT, cwd=work, env=_environment(),
                )  # fmt: skip
            try:
                while self._process.poll() is None and not self._is_stopped:
                    time.sleep(_SECONDS)
                    yield _progress(run, log, epochs)
            finally:  # also if the visitor has left, so that the generator is closed
                self._end_process()
            history, text = _history(run), _readable_log(log, work)
            if self._is_stopped:
                last = Progress("Training was stopped, so there are no weights.", history, text)
            elif not (run / "weights").is_dir():
                last = Progress(f"Training failed: {_error(text)}", history, text)
            else:
                last = self._finished(run / "weights", history, text)
        yield last  # by now, the photos are deleted

    def stop(self) -> None:
        """End a running training. `train` then yields a last progress."""
        self._is_stopped = True

    def close(self) -> None:
        """End a running training and delete everything."""
        self.stop()
        self._end_process()
        shutil.rmtree(self._folder, ignore_errors=True)

    def _end_process(self) -> None:
        if self._process is None:
            return
        if self._process.poll() is None:
            self._process.terminate()
            try:
                self._process.wait(_SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                self._process.kill()
        self._process.wait()

    def _finished(self, weights: Path, history: list[dict[str, float]], text: str) -> Progress:
        """Move the weight folder out of the run, which is deleted, and archive it."""
        target = Path(mkdtemp(dir=self._folder)) / "weights"
        shutil.move(weights, target)
        archive = Path(shutil.make_archive(str(target.parent / "acmix-weights"), "zip", target))
        best = max((row["val/top1"] for row in history if "val/top1" in row), default=None)
        score = "" if best is None else f" The best epoch has {100 * best:.2f} % accuracy on the validation images."
        message = f"Finished.{score} Download the weights, or choose “your network” under “Look at an image”."
        return Progress(message, history, text, archive, target)


def _train_command(photos: PhotoArchive, data: Path, run: Path, start: str, epochs: int) -> list[str]:
    """Return the command that fine-tunes on the photos."""
    options = {
        "model": start if timm.is_model(start) or not Path(start).exists() else Path(start).absolute(),
        "epochs": epochs,
        "out": run,
        "data.batch_size": max(2, min(32, photos.train_images // 4)),  # a few steps per epoch, even for few images
        "run.tag": photos.name,
        "trainer.enable_progress_bar": "false",
        "trainer.logger": "false",
    }
    words = [f"--{name}={value}" for name, value in options.items()]
    return [sys.executable, "-m", "acmix_zoo.cli", "train", str(data), *words]


def _environment() -> dict[str, str]:
    """Return the environment of the child process, which has to find this package, even if it is not installed."""
    package = str(Path(acmix_zoo.__file__).parent.parent)
    paths = [package, *filter(None, [os.environ.get("PYTHONPATH")])]
    return {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}


def _progress(run: Path, log: Path, epochs: int) -> Progress:
    history = _history(run)
    message = f"Epoch {len(history) + 1} of {epochs} …" if history or (run / "checkpoints").exists() else "Starting …"
    if len(history) == epochs:
        message = "Writing the weights …"
    return Progress(message, history, _readable_log(log, str(log.parent)))


def _history(run: Path) -> list[dict[str, float]]:
    """Return the rows of metrics.csv, which a run replaces after each epoch."""
    try:
        with (run / "metrics.csv").open(newline="", encoding="utf-8") as file:
            return [{name: float(value) for name, value in row.items() if value} for row in csv.DictReader(file)]
    except FileNotFoundError:
        return []


def _readable_log(log: Path, folder: str) -> str:
    """Return the lines of a log, without the name of the temporary folder."""
    try:
        return log.read_text(encoding="utf-8", errors="replace").replace(f"{folder}/", "")
    except FileNotFoundError:  # the visitor has left
        return ""


def _error(text: str) -> str:
    """Return the error that a command has printed as its last line."""
    lines = [line for line in text.splitlines() if line.strip()]
    errors = [line.partition("error: ")[2] for line in lines if line.startswith("acmix-zoo") and "error: " in line]
    return errors[-1] if errors else lines[-1] if lines else "it printed nothing"
