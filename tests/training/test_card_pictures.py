"""The pictures of a run that a model card shows are small, and show images only if their licence allows it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("matplotlib")

from PIL import Image

from acmix_zoo.models.task_kinds import CLASSIFICATION
from acmix_zoo.training.card_pictures import card_pictures
from acmix_zoo.training.plots import plot_confusion, plot_curves


def write_confusion(classes: int, path: Path) -> None:
    """Draw a confusion matrix in which half of the images are classified correctly."""
    counts = 25 * np.eye(classes, dtype=int) + np.random.default_rng(0).poisson(25 / classes, (classes, classes))
    plot_confusion(counts, [f"class {i}" for i in range(classes)], path)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run folder with every picture that a run can write."""
    folder = tmp_path_factory.mktemp("run")
    generator = np.random.default_rng(0)
    (folder / "test").mkdir()
    names = ("train/loss", "val/loss", "val/top1", "lr")
    rows = [{"epoch": epoch, **dict(zip(names, generator.random(4), strict=True))} for epoch in range(1, 31)]
    plot_curves(rows, folder / "curves.png", CLASSIFICATION.metrics)
    write_confusion(10, folder / "test/confusion.png")
    noise = Image.fromarray(generator.integers(0, 256, (46, 64, 3), dtype=np.uint8)).resize((512, 368))
    for name in ("test/mistakes.png", "predictions.png"):
        noise.save(folder / name)
    return folder


def test_plots_are_small(run: Path) -> None:
    pictures = card_pictures(run, "test", {"name": "photos", "license": "unknown"})
    assert [picture.name for picture in pictures] == ["curves.png", "confusion.png"]
    assert sum(len(picture.content) for picture in pictures) < 150_000
    assert pictures[1].caption == "Confusion matrix on the test split"


@pytest.mark.slow
def test_the_confusion_matrix_of_many_classes_is_small(tmp_path: Path) -> None:
    (tmp_path / "test").mkdir()
    write_confusion(200, tmp_path / "test/confusion.png")
    [picture] = card_pictures(tmp_path, "test", {"name": "photos"})
    assert len(picture.content) < 120_000


def test_images_are_shown_if_their_licence_allows_it(run: Path) -> None:
    for license in ("unknown", "cc-by-nc-4.0"):
        assert len(card_pictures(run, "test", {"name": "photos", "license": license})) == 2
    pictures = {
        picture.name: picture for picture in card_pictures(run, "test", {"name": "digits", "license": "CC-BY-4.0"})
    }
    assert list(pictures) == ["curves.png", "confusion.png", "mistakes.jpg", "predictions.jpg"]
    assert "(images of digits, CC-BY-4.0)" in pictures["mistakes.jpg"].caption
    assert pictures["mistakes.jpg"].content[:2] == b"\xff\xd8"


def test_an_evaluation_of_some_images_is_not_shown(run: Path) -> None:
    pictures = card_pictures(run, "", {"name": "digits", "license": "CC-BY-4.0"})
    assert [picture.name for picture in pictures] == ["curves.png", "predictions.jpg"]
