"""The evaluation of the final weights measures calibration and accuracy like torchmetrics, and draws two figures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

pytest.importorskip("lightning")
from torchmetrics.functional.classification import multiclass_accuracy, multiclass_calibration_error

from acmix_zoo import create_model
from acmix_zoo.data.image_loading import evaluation_transform
from acmix_zoo.weights.fetch import weight_folder
from tools import final_networks, read_table
from tools.final_networks import BINS, calibrate, main, measure, predict, table


@pytest.fixture(scope="module")
def predictions() -> tuple[torch.Tensor, torch.Tensor]:
    """Logits (500, 7) and classes (500,). Every third prediction is right with certainty."""
    generator = torch.Generator().manual_seed(0)
    logits = 2 * torch.randn(500, 7, generator=generator)
    classes = torch.randint(7, (500,), generator=generator)
    logits[torch.arange(0, 500, 3), classes[::3]] = 100.0
    return logits, classes


def test_the_calibration_error_is_that_of_torchmetrics(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, classes = predictions
    expected = multiclass_calibration_error(logits.double().softmax(1), classes, num_classes=7, n_bins=BINS)
    found = calibrate(logits, classes)
    assert found.error == pytest.approx(float(expected), abs=1e-6) and found.error > 0.01
    assert found.counts.sum() == 500 and found.counts[-1] >= 167, "certain predictions belong to the last bin"


def test_accuracies_are_those_of_torchmetrics(predictions: tuple[torch.Tensor, torch.Tensor]) -> None:
    logits, classes = predictions
    columns = measure(logits, classes)
    for top_k, name in ((1, "top1"), (5, "top5")):
        expected = multiclass_accuracy(logits, classes, num_classes=7, top_k=top_k, average="micro")
        assert float(columns[name]) == pytest.approx(float(expected), abs=1e-4)


def test_images_are_normalised_once(tmp_path: Path) -> None:
    """As `acmix-zoo classify` does it. A second normalisation would still give plausible numbers."""
    for split in ("train", "test"):
        for level in range(10):
            (tmp_path / split / str(level)).mkdir(parents=True)
            for i in range(2):
                pixels = np.random.default_rng(10 * level + i).integers(0, 25 * level + 20, (40, 40, 3), np.uint8)
                Image.fromarray(pixels).save(tmp_path / split / str(level) / f"{i}.png")
    folder = weight_folder("acmix_resnet_pico.fashion_mnist")
    logits, classes, _ = predict(folder, str(tmp_path), 32)
    model = create_model(str(folder)).eval()
    transform = evaluation_transform(model.pretrained_cfg)
    with torch.no_grad():
        for number in (0, 7):
            image = Image.open(tmp_path / "test" / str(int(classes[number])) / f"{number % 2}.png")
            torch.testing.assert_close(model(transform(image)[None])[0], logits[number], rtol=1e-3, atol=1e-3)


def test_it_replaces_the_table_and_draws_the_figures(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for split in ("train", "test"):
        for level in range(10):
            folder = tmp_path / "photos" / split / str(level)
            folder.mkdir(parents=True)
            for i in range(2):
                Image.fromarray(np.full((40, 40, 3), 25 * level + i, np.uint8)).save(folder / f"{i}.png")
    monkeypatch.setattr(final_networks, "WEIGHTS", ("acmix_resnet_pico.fashion_mnist", "acmix_swin_pico.fashion_mnist"))
    monkeypatch.setattr(final_networks, "SIZES", (32, 48))
    monkeypatch.setattr(final_networks, "TABLE", tmp_path / "final.csv")
    for _ in range(2):
        main(str(tmp_path / "photos"), tmp_path)
    rows = read_table(tmp_path / "final.csv")
    assert [row["size"] for row in rows] == ["32", "48"] * 2 and rows[0]["images"] == "20"
    assert rows[0]["calibration_error"] != rows[1]["calibration_error"], "the network sees images of another size"
    assert [row[:2] for row in table(tmp_path / "final.csv")[1:]] == [
        [f"`acmix_{family}_pico.fashion_mnist`", size]
        for family in ("resnet", "swin")
        for size in ("32 pixels, as in training", "48 pixels")
    ]
    for name in ("calibration", "confusion"):
        with Image.open(tmp_path / f"evidence_{name}.png") as figure:
            assert figure.width > 500
