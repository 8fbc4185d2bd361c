"""Exponential moving average of the weights that leaves integers alone."""

import warnings
from collections.abc import Sequence
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor


class EMA(WeightAveraging):
    """Lightning's weight averaging with a moving average over floating-point tensors and copies of all others.

    Averaging position indices or counters in floating point and truncating makes them wrong. The decay after n updates
    is min(decay, (1 + n) / (10 + n)), so a short run is not held back by its initial weights. Validation, checkpoints
    (`state_dict`) and the final model use the average; the trained weights are `current_model_state`.

    Raises:
        ValueError: decay outside (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay={decay} was given; expected a number in (0, 1), such as 0.999")
        self.decay = decay
        self._swapped = False
        super().__init__(multi_avg_fn=self._update)

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Make the average. The task refuses networks that are spread, which Lightning warns of in any case."""
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", message=".*overrides the configure_model callback.*")
            super().setup(trainer, pl_module, stage)

    @torch.no_grad()
    def _update(self, average: Sequence[Tensor], current: Sequence[Tensor], updates: Tensor | int) -> None:
        """Update tensors of one device and dtype in place."""
        n = int(updates)
        if average[0].is_floating_point():
            weight = 1 - min(self.decay, (1 + n) / (10 + n))
            torch._foreach_lerp_(list(average), list(current), weight)
        else:
            torch._foreach_copy_(list(average), list(current))

    def _swap_models(self, pl_module: L.LightningModule) -> None:
        super()._swap_models(pl_module)
        self._swapped = not self._swapped

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """An interruption during validation finds the average in the model's place: undo that."""
        if self._swapped:
            self._swap_models(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Let the average go once it has been copied: a later `validate` must not swap it in again."""
        self._average_model = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Outside of a fit the checkpoint's `state_dict`, the average, is just what is wanted: nothing to restore."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
