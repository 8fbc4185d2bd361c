"""A plan as rows of words, for the terminal and for docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence

from acmix_zoo.scaling.jobs import Job
from acmix_zoo.scaling.step import Step

HEADS = ["GPUs", "images a step", "lr", "memory, GB", "step, ms", "of it waiting", "sent, MB", "images/s", "efficiency"]


def rows(job: Job, steps: Sequence[Step]) -> list[list[str]]:
    """The head and a row for each step: bytes of one GPU, images of all GPUs, minutes of an epoch, hours of the run."""
    return [
        [*HEADS, "epoch, min", "run, h", "GPU-hours"],
        *([*_step(job, s), *_hours(job, s)] for s in steps),
    ]


def _step(job: Job, s: Step) -> list[str]:
    return [
        f"{s.gpus:,}", f"{s.images:,}", f"{job.scaled_lr(s.images):.3g}", f"{s.memory.total / 1e9:.1f}",
        f"{1e3 * s.seconds:.4g}", f"{1e3 * s.exposed:.2g}", f"{s.volume / 1e6:.0f}", f"{s.rate:,.0f}",
        f"{100 * s.efficiency:.1f} %",
    ]  # fmt: skip


def _hours(job: Job, s: Step) -> list[str]:
    epoch = job.seconds_an_epoch(s)
    if epoch is None:
        return ["", "", ""]
    if job.epochs is None:
        return [f"{epoch / 60:.3g}", "", ""]
    hours = epoch / 3600 * job.epochs
    return [f"{epoch / 60:.3g}", f"{hours:.3g}", f"{hours * s.gpus:,.0f}"]
