"""The steps of a job as rows of text, for the terminal and for docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence

from acmix_zoo.scaling.jobs import Job
from acmix_zoo.scaling.step import Step

COLUMNS = [
    "GPUs", "images per step", "lr", "memory, GB", "step, ms", "waiting, ms", "sent, MB", "images/s", "efficiency",
    "epoch, min", "run, h", "GPU-hours",
]  # fmt: skip
"""Memory and bytes sent are those of one GPU; images are those of all GPUs."""


def format_steps(job: Job, steps: Sequence[Step]) -> list[list[str]]:
    """Return a header and one row for each step."""
    return [COLUMNS, *([*_format_step(job, step), *_format_durations(job, step)] for step in steps)]


def _format_step(job: Job, step: Step) -> list[str]:
    return [
        f"{step.gpus:,}",
        f"{step.images:,}",
        f"{job.scale_lr(step.images):.3g}",
        f"{step.memory.total / 1e9:.1f}",
        f"{1e3 * step.seconds:.4g}",
        f"{1e3 * step.waiting:.2g}",
        f"{step.sent / 1e6:.0f}",
        f"{step.throughput:,.0f}",
        f"{100 * step.efficiency:.1f} %",
    ]


def _format_durations(job: Job, step: Step) -> list[str]:
    """Return the minutes per epoch, the hours of the run and its GPU-hours, empty where they are unknown."""
    epoch = job.epoch_seconds(step)
    if epoch is None:
        return ["", "", ""]
    if job.epochs is None:
        return [f"{epoch / 60:.3g}", "", ""]
    hours = epoch / 3600 * job.epochs
    return [f"{epoch / 60:.3g}", f"{hours:.3g}", f"{hours * step.gpus:,.0f}"]
