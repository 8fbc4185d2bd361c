"""Build the tables of docs/scaling.md.

python -m tools.scaling_tables          prints them
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import acmix_zoo
from acmix_zoo.scaling.jobs import PUBLISHED_BATCH, Job
from acmix_zoo.scaling.machines import GPUS
from acmix_zoo.scaling.recipe import read_job
from acmix_zoo.scaling.step import Step
from acmix_zoo.scaling.step_table import format_steps
from tools import make_parser
from tools.scaling_check import read_checks

COUNTS = (1, 8, 32, 256, 1024)
ROOT = Path(acmix_zoo.__file__).parents[1]

# Images per second of the plain ResNet-50 at batch 256 in mixed precision, on one GPU and on eight, as NVIDIA published
# them in DeepLearningExamples (PyTorch/Classification/ConvNets/resnet50v1.5/README.md, container 21.03).
NVIDIA = {"a100": (2470, 16621), "v100": (1156, 8056)}


def imagenet_jobs() -> list[Job]:
    """Return the recipes for ImageNet-1k, in the precision of the hardware profiles for GPUs."""
    paths = sorted((ROOT / "recipes/imagenet1k").glob("*.yaml"))
    return [read_job(recipe, precision="bf16-mixed") for recipe in paths]


def scaled_batch_rows() -> list[list[str]]:
    """Return rows in which each GPU has the recipe's batch, so that more GPUs mean more images per step."""
    return _format_jobs([(job, job.steps(GPUS["a100"], COUNTS)) for job in imagenet_jobs()])


def capped_batch_rows() -> list[list[str]]:
    """Return rows with at most as many images per step as were published for the optimiser."""
    found = []
    for job in imagenet_jobs():
        limit, _ = PUBLISHED_BATCH[job.optimizer]
        found.append((job, job.steps(GPUS["a100"], COUNTS[2:], max_global_batch=limit)))
    return _format_jobs(found)


def _format_jobs(found: Sequence[tuple[Job, Sequence[Step]]]) -> list[list[str]]:
    """Return one table for all jobs, with the name of the recipe in the first column."""
    tables = [(job, format_steps(job, steps)) for job, steps in found]
    header = ["recipe", *tables[0][1][0]]
    return [header, *([f"`{Path(job.name).stem}`", *row] for job, table in tables for row in table[1:])]


def memory_rows() -> list[list[str]]:
    """Return what one of eight GPUs holds, for any batch and per image, with and without gradient checkpointing."""
    rows = [
        ["network", "fixed, GB", "MiB per image", "images in 80 GB", "checkpointed: MiB per image", "images in 80 GB"]
    ]
    gpu = GPUS["a100"]
    for job in imagenet_jobs():
        if job.ema or any(row[0] == f"`{job.model}`" for row in rows):
            continue  # a second recipe for the same network
        row = [f"`{job.model}`"]
        for checkpointing in (False, True):
            training = replace(job, grad_checkpointing=checkpointing).training(8)
            (step,) = replace(job, grad_checkpointing=checkpointing).steps(gpu, [8])
            per_image = training.activations.per_image
            fixed = step.memory.total - training.batch * per_image
            row += [] if checkpointing else [f"{fixed / 1e9:.2f}"]
            row += [f"{per_image / 2**20:.0f}", f"{(gpu.memory - fixed) / per_image:,.0f}"]
        rows.append(row)
    return rows


def nvidia_rows() -> list[list[str]]:
    """Return the throughput of eight GPUs that NVIDIA measured, beside the plan from the throughput of one."""
    rows = [["machine", "one GPU", "eight GPUs, published", "efficiency", "eight GPUs, planned", "efficiency"]]
    for name, (one, eight) in NVIDIA.items():
        job = Job("resnet50", "resnet50", batch_size=256, global_batch=256, optimizer="sgd", precision="16-mixed")
        (step,) = job.steps(GPUS[name], [8], throughput=one)
        published, planned = (f"{100 * fraction:.1f} %" for fraction in (eight / one / 8, step.efficiency))
        rows.append([GPUS[name].name, f"{one:,}", f"{eight:,}", published, f"{step.throughput:,.0f}", planned])
    return rows


def check_rows(path: Path = ROOT / "benchmarks/scaling.csv") -> list[list[str]]:
    """Return what two processes on a CPU measured, beside what the plan predicts."""
    rows = [["check", "of", "measured", "quartiles", "planned", "deviation"]]
    if not path.exists():
        return rows
    machine, checks = read_checks(path)
    for check in checks:
        rows.append(
            [
                check.check,
                check.what,
                f"{check.measured:.4g} {check.unit}",
                "" if check.q1 == check.q3 else f"{check.q1:.4g}–{check.q3:.4g}",
                f"{check.predicted:.4g}",
                f"{check.deviation:+.0%}",
            ]
        )
    return [*rows, ["machine", machine, "", "", "", ""]]


if __name__ == "__main__":
    make_parser("scaling_tables", __doc__).parse_args()
    for table in (scaled_batch_rows, capped_batch_rows, memory_rows, nvidia_rows, check_rows):
        print(table.__doc__, *(" | ".join(row) for row in table()), "", sep="\n")
