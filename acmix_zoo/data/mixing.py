"""Mixup and cutmix: mix the images of a training batch, and their classes in proportion."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor
from torchvision.transforms import v2


class Mixing:
    """Apply mixup, cutmix, or one of the two at random to each batch.

    The random numbers depend only on (seed, epoch, batch, process), so that they are the same after a resume.

    Args:
        mixup, cutmix: alpha of the Beta distribution from which the mixing ratio is drawn; 0 is off.
        num_classes: number of classes.
        seed: seed of all random choices.
    """

    def __init__(self, mixup: float, cutmix: float, num_classes: int, seed: int) -> None:
        self.seed = seed
        self.transforms = [v2.MixUp(alpha=mixup, num_classes=num_classes)] if mixup else []
        self.transforms += [v2.CutMix(alpha=cutmix, num_classes=num_classes)] if cutmix else []

    def __call__(self, batch: tuple[Tensor, Tensor], epoch: int, index: int, rank: int) -> tuple[Tensor, Tensor]:
        """Mix a batch. If neither mixup nor cutmix is on, the batch is returned unchanged.

        Args:
            batch: images (B, 3, S, S) and classes (B,) int64.
            epoch: number of the epoch.
            index: number of the batch within the epoch.
            rank: number of the process.

        Returns:
            Images (B, 3, S, S), and the fraction of each class (B, num_classes) float32.
        """
        if not self.transforms:
            return batch
        seed, choice = np.random.default_rng([self.seed, epoch, index, rank]).integers(2**31, size=2).tolist()
        with torch.random.fork_rng(devices=[]):  # so that the model's random numbers do not change
            torch.manual_seed(seed)
            images, targets = self.transforms[choice % len(self.transforms)](*batch)
        return images, targets
