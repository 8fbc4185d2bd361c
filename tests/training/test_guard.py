"""A loss or weights that are not finite stop the run and are not saved."""

from pathlib import Path
from typing import Any

import pytest
import torch

pytest.importorskip("lightning")

import lightning as L
from support.training import (
    NanLoss,
    make_data,
    make_task,
    make_trainer,
    train_run,
)
from torch import Tensor, nn

from acmix_zoo.training import RunFolder
from acmix_zoo.training.guard import NotFinite, are_weights_finite
from acmix_zoo.training.signals import Signals


def test_a_loss_of_nan_saves_the_batch_and_not_the_weights(
    image_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run, task = RunFolder(str(tmp_path / "run")), make_task(lr=0.01)
    task.train_criterion = NanLoss(8)
    data = make_data(image_folder, batch_size=4)
    data.setup("fit")
    data.train_dataloader().sampler.set_epoch(1)
    removed = data.describe_batch(2)[0]
    Path(removed).unlink()
    with (
        pytest.raises(NotFinite, match=r"nan at epoch 2, step 8; the batch is in .*state is in .*last\.ckpt") as e,
        pytest.warns(UserWarning, match="skipped"),
    ):
        make_trainer(run).fit(task, data)
    assert all(p.isfinite().all() for p in task.parameters())
    (kept,) = (tmp_path / "run").glob("not_finite_step8_rank0.pt")
    assert str(kept) in str(e.value)
    batch = torch.load(kept, weights_only=True)
    assert batch["images"].shape == (3, 3, 32, 32) and batch["epoch"] == 1 and batch["step"] == 8
    assert removed not in batch["names"]
    classes = [int(Path(name).parent.name.removeprefix("class")) for name in batch["names"]]
    assert classes == batch["targets"].tolist()
    assert torch.load(run.last, weights_only=True)["global_step"] == 6


def test_infinite_weights_are_not_saved(image_folder: Path, tmp_path: Path) -> None:
    """A finite loss may have an infinite gradient."""

    class Spoil(L.Callback):
        def on_before_optimizer_step(self, trainer: L.Trainer, module: L.LightningModule, optimizer: Any) -> None:
            if trainer.global_step == 9:
                next(module.parameters()).grad.fill_(float("inf"))  # type: ignore[union-attr]

    with pytest.raises(NotFinite, match="the weights are not finite after step 10, so they were not saved"):
        train_run(tmp_path / "run", image_folder, Spoil(), save_every=2)
    assert torch.load(tmp_path / "run/checkpoints/last.ckpt", weights_only=True)["global_step"] == 8


class LateSignals(Signals):
    """Signals as on a GPU, where the result of a step is checked after the next step has been queued."""

    @staticmethod
    def is_delayed(device: torch.device) -> bool:
        return True

    @staticmethod
    def _send(values: Tensor) -> tuple[Tensor, Any]:
        class Done:
            def synchronize(self) -> None: ...

        return values.clone(), Done()


@pytest.mark.parametrize("batch", [7, 11])  # within the second epoch of six steps, and its last
def test_a_loss_that_is_found_late_is_not_saved(image_folder: Path, tmp_path: Path, batch: int) -> None:
    """The saved batch is the one with the bad loss, and no checkpoint is affected, although each step is saved."""
    run, task = RunFolder(str(tmp_path / "run"), save_every=1), make_task(lr=0.01, ema_decay=0.9)
    run._signals = LateSignals()
    task.train_criterion = NanLoss(batch)
    with pytest.raises(NotFinite, match=r"the loss is nan at epoch 2.*The affected weights were not saved") as e:
        make_trainer(run).fit(task, make_data(image_folder, batch_size=4))
    (kept,) = (tmp_path / "run").glob("not_finite_*.pt")
    assert str(kept) in str(e.value)
    content = torch.load(kept, weights_only=True)
    data = make_data(image_folder, batch_size=4)
    data.setup("fit")
    data.train_dataloader().sampler.set_epoch(1)
    assert content["names"] == data.describe_batch(batch - 6)
    last = torch.load(run.last, weights_only=True)
    assert last["global_step"] == batch
    assert all(v.isfinite().all() for s in ("state_dict", "current_model_state") for v in last[s].values())


def test_buffers_are_checked_like_weights() -> None:
    module = L.LightningModule()
    module.norm = nn.BatchNorm2d(3)
    assert are_weights_finite(module)
    module.norm.running_var[1] = float("inf")
    assert not are_weights_finite(module)


def test_batches_in_lightnings_own_order_have_no_names(image_folder: Path) -> None:
    """With overfit_batches, it replaces the sampler."""
    data, names = make_data(image_folder), []

    class NameBatch(L.Callback):
        def on_train_batch_start(self, *args: Any) -> None:
            names.append(data.describe_batch(0))

    make_trainer(NameBatch(), epochs=1, overfit_batches=1, enable_checkpointing=False).fit(make_task(), data)
    assert names == [[]]
