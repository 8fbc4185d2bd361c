"""The learning-rate finder: which rates it tries, when it stops, and what it suggests."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

pytest.importorskip("lightning")

from support.streams import write_shards
from support.training import NanLoss, make_data, make_task, make_trainer
from torch.optim import Optimizer

from acmix_zoo.data import ImageDataModule
from acmix_zoo.training import RunFolder, learning_rate_finder
from acmix_zoo.training.guard import NotFinite
from acmix_zoo.training.learning_rate_finder import TriedRates, find_learning_rate, has_diverged

RATES = np.geomspace(1e-7, 1, 100)


@pytest.fixture
def ten_steps(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(learning_rate_finder, "STEPS", 10)


def noise(scale: float) -> np.ndarray:
    return np.random.default_rng(0).normal(0, scale, len(RATES))


def test_the_steepest_fall_is_suggested_and_not_the_noise_at_small_rates() -> None:
    """The loss falls from 2.3 to 0.8 around 1e-3. Over the rate itself, the noise below 1e-6 would be far steeper."""
    losses = 2.3 - 1.5 / (1 + (1e-3 / RATES) ** 1.5) + noise(0.15)
    suggested = TriedRates(RATES, losses).suggest()
    assert suggested is not None and 3e-4 < suggested < 3e-3
    steepest_over_rate = RATES[np.gradient(losses, RATES).argmin()]
    assert steepest_over_rate < 1e-6


def test_a_divergence_after_the_fall_does_not_matter() -> None:
    losses = 2.3 - 1.5 / (1 + (1e-3 / RATES) ** 1.5) + noise(0.05) + (RATES > 0.1) * 20
    suggested = TriedRates(RATES, losses).suggest()
    assert suggested is not None and 3e-4 < suggested < 3e-3


@pytest.mark.parametrize("losses", [2.3 + noise(0.15), 2.3 + RATES, np.full(100, 2.3)], ids=["noise", "rise", "flat"])
def test_a_loss_that_does_not_fall_gives_no_suggestion(losses: np.ndarray) -> None:
    assert TriedRates(RATES, losses).suggest() is None
    assert TriedRates(RATES[:5], losses[:5]).suggest() is None


def test_divergence() -> None:
    steady = [2.3, 2.2, 2.4, 2.3, 2.2] * 4
    assert not has_diverged(steady) and not has_diverged([2.3] * 10 + [0.1] * 10 + [1.0] * 5)
    assert has_diverged([*steady, *[20.0] * 5]) and has_diverged([*steady, float("nan")]) and has_diverged([np.inf])


def test_the_rates_are_values_of_the_option(image_folder: Path, ten_steps: None) -> None:
    """The batch size and the layer scale them as in a run, and accumulated batches are one step."""
    task, seen = make_task(lr=0.1, base_batch_size=32, layer_decay=0.5, ema_decay=0.9), []

    def note(optimizer: Optimizer) -> None:
        seen.append(sorted({group["lr"] for group in optimizer.param_groups}, reverse=True))

    task.on_before_optimizer_step = note  # type: ignore[method-assign]
    trainer = make_trainer(epochs=1, accumulate_grad_batches=2)
    tried = find_learning_rate(trainer, task, make_data(image_folder))
    assert tried.rates[[0, -1]] == pytest.approx([1e-7, 1.0]) and len(tried.losses) == len(seen) == 10
    assert [rates[0] for rates in seen] == pytest.approx(tried.rates * 16 / 32)
    assert all(rates[1] == pytest.approx(rates[0] / 2) for rates in seen)
    assert all(0.3 < loss < 3 for loss in tried.losses[:5])  # of three classes: 1.1 for a guess


def test_it_works_on_a_stream(tmp_path: Path, ten_steps: None) -> None:
    write_shards(tmp_path / "set", "parquet", (6, 6))
    data = ImageDataModule(
        str(tmp_path / "set"),
        image_size=32,
        batch_size=4,
        streaming=True,
        val_fraction=0.0,
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
    )
    assert len(find_learning_rate(make_trainer(), make_task(), data).losses) == 10


def test_a_loss_of_nan_ends_it(image_folder: Path, ten_steps: None) -> None:
    """From the first step, it is an error. Later, it is a divergence."""
    task = make_task()
    task.train_criterion = NanLoss(0)
    with pytest.raises(
        NotFinite, match=r"^the loss is nan in the first step.* Expected a finite loss.* Check the images"
    ):
        find_learning_rate(make_trainer(), task, make_data(image_folder))
    task = make_task()
    task.train_criterion = NanLoss(6)
    tried = find_learning_rate(make_trainer(), task, make_data(image_folder))
    assert len(tried.losses) == len(tried.rates) == 6 and np.isfinite(tried.losses).all()


def test_the_option_is_refused_in_python(image_folder: Path, tmp_path: Path) -> None:
    trainer = make_trainer(RunFolder(str(tmp_path / "run"), find_lr=True))
    with pytest.raises(ValueError, match=r"find_lr=True .* Expected False.* call .*find_learning_rate"):
        trainer.fit(make_task(), make_data(image_folder))
    assert not (tmp_path / "run").exists()
