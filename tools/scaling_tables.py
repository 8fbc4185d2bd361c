"""The tables of docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import acmix_zoo
from acmix_zoo.scaling.jobs import PUBLISHED_BATCH, Job, read_job
from acmix_zoo.scaling.machines import GPUS
from acmix_zoo.scaling.plan_table import rows
from acmix_zoo.scaling.step import Step
from tools.scaling_check import read_checks

COUNTS = (1, 8, 32, 256, 1024)
ROOT = Path(acmix_zoo.__file__).parents[1]


def imagenet_jobs() -> list[Job]:
    """The recipes of ImageNet-1k, in the precision of the overlays for GPUs."""
    paths = sorted((ROOT / "recipes/imagenet1k").glob("*.yaml"))
    return [read_job(recipe, precision="bf16-mixed") for recipe in paths]


def growing_rows() -> list[list[str]]:
    """Every recipe with its batch on each GPU, so that more GPUs mean a larger step."""
    return _of_all([(job, job.steps(GPUS["a100"], COUNTS)) for job in imagenet_jobs()])


def capped_rows() -> list[list[str]]:
    """Every recipe with no more images a step than were published for its optimiser."""
    jobs = imagenet_jobs()
    return _of_all([(j, j.steps(GPUS["a100"], COUNTS[2:], at_most=PUBLISHED_BATCH[j.optimizer][0])) for j in jobs])


def _of_all(found: Sequence[tuple[Job, Sequence[Step]]]) -> list[list[str]]:
    tables = [(job, rows(job, steps)) for job, steps in found]
    return [["recipe", *tables[0][1][0]], *([f"`{Path(job.name).stem}`", *row] for job, t in tables for row in t[1:])]


def memory_rows() -> list[list[str]]:
    """What a GPU of eight holds, whatever the batch and for each image, with and without checkpointing."""
    cells = [["network", "held in any case, GB", "an image, MiB", "images in 80 GB", "checkpointed: MiB", "images"]]
    gpu = GPUS["a100"]
    for job in imagenet_jobs():
        if job.ema or any(row[0] == f"`{job.model}`" for row in cells):
            continue  # a network's modern recipe
        row = [f"`{job.model}`"]
        for checkpoints in (False, True):
            training = replace(job, grad_checkpointing=checkpoints).training(8)
            (at_8,) = replace(job, grad_checkpointing=checkpoints).steps(gpu, [8])
            fixed = at_8.memory.total - training.batch * training.activations.image
            image = training.activations.image
            row += [] if checkpoints else [f"{fixed / 1e9:.2f}"]
            row += [f"{image / 2**20:.0f}", f"{(gpu.memory - fixed) / image:,.0f}"]
        cells.append(row)
    return cells


# Images a second of the plain ResNet-50, batch 256, mixed precision, of one GPU and of eight, as NVIDIA published them
# in DeepLearningExamples (PyTorch/Classification/ConvNets/resnet50v1.5/README.md, container 21.03).
NVIDIA = {"a100": (2470, 16621), "v100": (1156, 8056)}


def nvidia_rows() -> list[list[str]]:
    """What the plan makes of one GPU's rate, beside the eight that were measured elsewhere."""
    cells = [["machine", "one GPU", "eight GPUs, published", "efficiency", "by the plan", "efficiency"]]
    for name, (one, eight) in NVIDIA.items():
        job = Job("resnet50", "resnet50", batch=256, together=256, optimizer="sgd", precision="16-mixed")
        (s,) = job.steps(GPUS[name], [8], rate=one)
        theirs, ours = (f"{100 * share:.1f} %" for share in (eight / one / 8, s.efficiency))
        cells.append([GPUS[name].name, f"{one:,}", f"{eight:,}", theirs, f"{s.rate:,.0f}", ours])
    return cells


def check_rows(path: Path = ROOT / "benchmarks/scaling.csv") -> list[list[str]]:
    """What two processes on a CPU did, beside what the plan says."""
    said, checks = read_checks(path)
    cells = [["check", "of", "measured", "quartiles", "by the plan", "deviation"]]
    cells += [
        [
            c.check,
            c.what,
            f"{c.measured:.4g} {c.unit}",
            "" if c.q1 == c.q3 else f"{c.q1:.4g}–{c.q3:.4g}",
            f"{c.predicted:.4g}",
            f"{c.deviation:+.0%}",
        ]
        for c in checks
    ]
    return [*cells, ["machine", said, "", "", "", ""]]
