"""Metrics are exact means over images, whatever the batches."""

from pathlib import Path

import pytest
import torch

pytest.importorskip("lightning")

from support.training import (
    make_data,
    make_task,
    make_trainer,
)
from torch import nn

from acmix_zoo.tasks.metrics import ExactMean


def test_an_exact_mean_does_not_depend_on_order_or_batches() -> None:
    values = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 3
    all_values, parts = ExactMean(), ExactMean()
    all_values.update(values)
    for part in values.flip(0).split(7):
        parts.update(part)
    assert torch.equal(all_values.compute(), parts.compute())
    assert float(all_values.compute()) == pytest.approx(float(values.double().mean()), abs=1e-6)
    other = ExactMean()
    other.restore(all_values.sums())
    other.update(torch.tensor(float("inf")))
    assert other.compute().isnan() and ExactMean().compute().isnan()


@pytest.mark.parametrize(
    ("values", "mean"),
    [
        ([2.0**15, 2.0**14, -(2.0**15)], 2.0**14 / 3),
        ([2.0**20, 2.0**14], (2.0**15 + 2.0**14) / 2),  # larger values count as 2^15
        ([1.0, float("inf")], float("nan")),
    ],
    ids=["exact", "limited", "infinite"],
)
def test_large_values_in_an_exact_mean(values: list[float], mean: float) -> None:
    metric = ExactMean()
    metric.update(torch.tensor(values))
    assert float(metric.compute()) == pytest.approx(mean, rel=1e-6, nan_ok=True)


def test_metrics_are_means_over_images(image_folder: Path) -> None:
    """Batches of different sizes and classes of different sizes do not matter."""
    (image_folder / "class0" / "0.png").unlink()
    task = make_task()
    data = make_data(image_folder, val_fraction=0.4, batch_size=5)
    (result,) = make_trainer().validate(task, data, verbose=False)
    task.eval()
    batches = list(data.val_dataloader())
    assert len({len(y) for _, y in batches}) == 2
    x, y = (torch.cat(parts) for parts in zip(*batches, strict=True))
    with torch.no_grad():
        logits = task(x)
    assert result["val/top1"] == pytest.approx((logits.argmax(1) == y).double().mean().item())
    assert result["val/loss"] == pytest.approx(nn.functional.cross_entropy(logits, y).item(), rel=1e-5)


def test_a_damaged_image_alone_in_its_batch_is_not_counted(image_folder: Path) -> None:
    data = make_data(image_folder, batch_size=4)  # the last of nine validation images is alone in its batch
    data.setup("validate")
    images, indices = data.splits["val"]
    trainer, task = make_trainer(enable_checkpointing=False), make_task()
    before = list(data.val_dataloader())
    Path(images.describe(int(indices[-1]))).unlink()
    with pytest.warns(UserWarning, match="skipped"):
        (scores,) = trainer.validate(task, data, verbose=False)
    task.eval()
    with torch.no_grad():
        logits, y = (torch.cat(parts) for parts in zip(*((task(x), y) for x, y in before[:-1]), strict=True))
    assert len(before[-1][1]) == 1 and len(y) == 8
    assert scores["val/loss"] == pytest.approx(float(nn.functional.cross_entropy(logits, y)), abs=1e-6)
    assert scores["val/top1"] == pytest.approx(float((logits.argmax(1) == y).float().mean()), abs=1e-6)
