"""A training run: its folder, checkpoints, resuming, and the export of its best weights.

It exports what a training run in Python needs: parameter groups, schedule, averaged weights, and the run folder.
"""

from acmix_zoo.tasks.ema import EMA
from acmix_zoo.tasks.optim import param_groups, warmup_cosine
from acmix_zoo.training.run import RunFolder

__all__ = ["EMA", "RunFolder", "param_groups", "warmup_cosine"]
