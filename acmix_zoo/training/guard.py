"""Stop a run when its loss or weights are no longer finite: save the batch for inspection, but not the weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import Tensor


class NotFinite(ValueError):
    """The loss, or the weights, are NaN or infinite."""


def weights_are_finite(module: L.LightningModule) -> bool:
    """Return whether a module's weights and buffers are finite, so that a checkpoint of them is worth saving."""
    tensors = [t.detach() for t in (*module.parameters(), *module.buffers()) if t.is_floating_point()]
    finite = [t.isfinite().all() for t in tensors]
    # one check for all of them, because each check makes the host wait for the device
    plain = [value for value in finite if type(value) is Tensor]
    spread = [value for value in finite if type(value) is not Tensor]  # sharded; each needs a small collective
    return (not plain or bool(torch.stack(plain).all())) and all(map(bool, spread))


def keep_batch(folder: Path, trainer: L.Trainer, batch: Any, index: int, loss: Tensor) -> str:
    """Write a batch for study: {images, targets, names, loss, epoch, step}, to be read by torch.load;
    no names where it is not certain whose they are.

    Args:
        folder: of the run.
        batch: (images, targets) as the network got them, mixed and all.
        index: of the batch in the epoch.

    Returns:
        Where it is, or why it could not be written.
    """
    path = folder / f"not_finite_step{trainer.global_step}_rank{trainer.global_rank}.pt"
    data: Any = getattr(trainer, "datamodule", None)
    names = data.describe_batch(index) if hasattr(data, "describe_batch") else []
    if len(names) != len(batch[0]):  # a file that failed earlier may be back: no names are better than wrong ones
        names = []
    content = {
        "images": batch[0].detach().cpu().contiguous(),
        "targets": batch[1].detach().cpu(),
        "names": names,
        "loss": float(loss.detach()),
        "epoch": trainer.current_epoch,
        "step": trainer.global_step,
    }
    try:
        torch.save(content, path)
    except (OSError, RuntimeError) as error:
        return f"the batch could not be written to {path}: {error}"
    return f"the batch is in {path} (images, targets, names of the files)"
