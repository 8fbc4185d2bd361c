"""Mixup and cutmix, drawn by (seed, epoch, batch, process)."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """One of mixup and cutmix, whichever is on, for each batch.

    Args:
        mixup, cutmix: alpha of the Beta distribution; 0 is off.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.seed = seed
        self.kinds = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        self.kinds += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def __call__(self, batch: tuple[Tensor, Tensor], epoch: int, index: int, rank: int) -> tuple[Tensor, Tensor]:
        """(B, 3, S, S) and (B,) int64 → the same and (B, classes) float32; as they are if neither is on."""
        if not self.kinds:
            return batch
        key = np.random.default_rng([self.seed, epoch, index, rank]).integers(2**31, size=2)
        with torch.random.fork_rng(devices=[]):  # the same after a resume, and none of the model's random numbers
            torch.manual_seed(int(key[0]))
            images, targets = self.kinds[int(key[1]) % len(self.kinds)](*batch)
        return images, targets
