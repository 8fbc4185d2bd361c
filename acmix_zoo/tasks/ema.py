"""Exponential moving average of the weights: exact for integers, in float32 for half-precision weights."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Iterator
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel


class EMA(WeightAveraging):
    """Keep a moving average of floating-point weights and buffers, and copies of all others.

    The decay after n updates is min(decay, (1 + n) / (10 + n)), so a short run is not held back by its initial weights.
    Validation, checkpoints (`state_dict`) and the final model use the average; the trained weights are
    `current_model_state`.

    Lightning's WeightAveraging decides when to update, save and restore. This class differs from Lightning's
    EMAWeightAveraging as follows:

    * Integer buffers, such as position indices and counters, are copied. Lightning averages them in floating point and
      truncates, which makes them wrong.
    * The average is on the training device. Lightning's average stays where the module was before the fit, on the CPU,
      so every step would copy all weights off a GPU and wait for them.
    * The average of bfloat16 and float16 weights is in float32 (`precision="bf16-true"`). In their own dtype, an
      update of 1 - decay would be rounded away, and Lightning's average fails because the dtypes differ.

    timm's ModelEmaV3 does all of this, but it is not a callback, so validation, checkpoints and resuming would have to
    be written here.

    Raises:
        ValueError: decay outside (0, 1).
    """

    def __init__(self, decay: float = 0.999) -> None:
        if not 0 < decay < 1:
            raise ValueError(f"EMA: decay={decay} is out of range. Expected a number in (0, 1), such as 0.999")
        self.decay = decay
        self._swapped = False
        self._set_aside: list[Tensor] = []  # trained weights, during validation
        super().__init__()
        self._average_model: _Average | None = None

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Create the average. The task has already rejected networks that are sharded over processes."""
        if stage == "fit":
            pl_module.configure_model()  # a module may create its layers there
            self._average_model = _Average(pl_module, self.decay)

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """Move the average to the module's current device and precision."""
        assert self._average_model is not None
        self._average_model.match(pl_module)

    @torch.no_grad()
    def _swap_models(self, pl_module: L.LightningModule) -> None:
        """Swap the average and the trained weights.

        If their dtypes differ, the trained weights are set aside instead, because swapping would round the average.
        """
        assert self._average_model is not None
        set_aside, self._set_aside = iter(self._set_aside), []
        for average, current in zip(_tensors(self._average_model.module), _tensors(pl_module), strict=True):
            if average.dtype == current.dtype:
                before = average.clone()
                average.copy_(current)
                current.copy_(before)
            elif self._swapped:
                current.copy_(next(set_aside))
            else:
                self._set_aside.append(current.clone())
                current.copy_(average)
        self._swapped = not self._swapped

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        """Restore the trained weights if validation, which uses the average, was interrupted."""
        if self._swapped:
            self._swap_models(pl_module)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        """Delete the average, which has been copied into the module: a later `validate` must not swap it in again."""
        self._average_model = None

    def on_load_checkpoint(self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]) -> None:
        """Restore the average when a fit is resumed. Other commands only use the `state_dict`, which is the average."""
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)


def _tensors(module: nn.Module) -> Iterator[Tensor]:
    """Yield a module's parameters and buffers."""
    for tensor in itertools.chain(module.parameters(), module.buffers()):
        yield tensor.detach()


class _Average(AveragedModel):
    """The averaged copy of a module, with buffers."""

    def __init__(self, module: nn.Module, decay: float) -> None:
        super().__init__(module, use_buffers=True)
        self.decay = decay
        self.match(module)

    def match(self, model: nn.Module) -> None:
        """Adopt a module's device and dtypes, with float32 in place of half precision. The number of updates stays on
        the CPU, because the program reads it."""
        own_tensors = itertools.chain(self.module.parameters(), self.module.buffers())
        for average, current in zip(own_tensors, _tensors(model), strict=True):
            is_half = current.dtype in (torch.bfloat16, torch.float16)
            average.data = average.data.to(current.device, torch.float32 if is_half else current.dtype)

    @torch.no_grad()
    def update_parameters(self, model: nn.Module) -> None:
        """Move the average towards a module's weights. The first call copies them."""
        n = int(self.n_averaged)
        weight = 1 - min(self.decay, (1 + n) / (10 + n)) if n else 1.0
        groups: dict[torch.dtype, tuple[list[Tensor], list[Tensor]]] = defaultdict(lambda: ([], []))
        for average, current in zip(_tensors(self.module), _tensors(model), strict=True):
            if n and average.is_floating_point():
                averages, currents = groups[average.dtype]
                averages.append(average)
                currents.append(current.to(average))  # dtype and device
            else:
                average.copy_(current)
        for averages, currents in groups.values():
            torch._foreach_lerp_(averages, currents, weight)
        self.n_averaged += 1
