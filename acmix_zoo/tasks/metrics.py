"""A mean that does not depend on how its values were dealt to processes, batches or a resumed run."""

import torch
from torch import Tensor
from torchmetrics import Metric

_UNIT = 2**24  # a power of two: scaling by it is exact, and a loss of some units keeps all its float32 digits


class ExactMean(Metric):
    """Mean of numbers, summed as integers in units of 2^-24: the sum of floats depends on their order, this does not.

    Values up to 2^15 are kept; larger ones count as 2^15. One that is not finite makes the mean NaN.
    """

    full_state_update = False
    total: Tensor
    count: Tensor
    broken: Tensor
    _NAMES = ("total", "count", "broken")

    def __init__(self) -> None:
        super().__init__()
        for name in self._NAMES:
            self.add_state(name, torch.tensor(0), dist_reduce_fx="sum")

    def update(self, values: Tensor) -> None:
        """Add values of any shape."""
        values = values.detach().float().flatten()
        finite = values.isfinite()
        units = torch.where(finite, values.clamp(-(2.0**15), 2.0**15), 0) * _UNIT
        self.total += units.round().long().sum()
        self.count += values.numel()
        self.broken += (~finite).sum()

    def compute(self) -> Tensor:
        """Return the mean so far, (), NaN without values."""
        mean = self.total.float() / (self.count.float() * _UNIT)
        return torch.where(self.broken > 0, torch.nan, mean)

    def sums(self) -> Tensor:
        """(3,) integers: the state, of this process."""
        return torch.stack([getattr(self, name) for name in self._NAMES])

    def restore(self, sums: Tensor) -> None:
        """Go on from the state that `sums` gave."""
        for name, value in zip(self._NAMES, sums, strict=True):
            setattr(self, name, value.to(getattr(self, name).device, copy=True))
        self._update_count = 1
