"""The command `acmix-zoo plan`: estimate the memory and time of training a recipe on n GPUs. See docs/scaling.md."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.layers.complexity import human
from acmix_zoo.scaling.jobs import PRECISIONS, Job
from acmix_zoo.scaling.machines import GPUS, LINK_FRACTION, Machine, find_gpu
from acmix_zoo.scaling.recipe import read_job
from acmix_zoo.scaling.step import UTILISATION, Training
from acmix_zoo.scaling.step_table import format_steps


def plan(arguments: Sequence[str]) -> None:
    """Print memory, time, communication and efficiency of training on several numbers of GPUs, by formula.

    Raises:
        FileNotFoundError, ValueError: unknown recipe, network or GPU, or impossible numbers.
    """
    options = _parse(arguments)
    gpu = find_gpu(options.gpu)
    if options.network is not None:
        gpu = gpu.with_network(options.network, options.gpus_per_node)
    for recipe in options.recipes:
        job = read_job(
            recipe,
            options.hardware,
            batch_size=options.batch,
            precision=options.precision,
            strategy=options.strategy,
        )
        _print_plan(job, gpu, options)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "acmix-zoo plan",
        description="Estimate the memory and time of training a recipe on n GPUs, by the formulas of docs/scaling.md. "
        "No GPU is needed. If n GPUs are too few for the recipe's batch, they accumulate gradients to reach it.",
    )
    add = parser.add_argument
    add("recipes", nargs="+", metavar="RECIPE", help="a recipe, a run folder, or any network or weights")
    add("--hardware", metavar="PROFILE", help="hardware profile that overrides the recipe, such as hardware/fsdp")
    add("--gpus", type=int, nargs="+", default=[1, 8, 32, 256, 1024], metavar="N", help="default: 1 8 32 256 1024")
    add("--gpu", default="a100", help=f"{', '.join(GPUS)} (default: a100)")
    add("--gpus-per-node", type=int, default=8, metavar="N", help="default: 8")
    add("--network", type=float, metavar="GBIT", help="Gbit/s of a node's network (default: that of NVIDIA's systems)")
    add("--batch", type=int, help="images per GPU and micro-batch (default: the recipe's)")
    add("--global-batch", type=int, metavar="N", help="maximum images per step on all GPUs")
    add("--precision", choices=PRECISIONS, help="default: the recipe's, or bf16-mixed for a network")
    add("--strategy", choices=("ddp", "fsdp"), help="default: the recipe's, or ddp for a network")
    add("--utilisation", type=float, help="fraction of peak throughput (default: 0.1, or 0.3 in float32)")
    add("--images-per-second", type=float, metavar="X", help="measured training throughput of one GPU")
    options: argparse.Namespace = parser.parse_args(arguments)
    return options


def _print_plan(job: Job, gpu: Machine, options: argparse.Namespace) -> None:
    steps = job.steps(
        gpu,
        options.gpus,
        options.gpus_per_node,
        options.global_batch,
        options.utilisation,
        options.images_per_second,
    )
    training = job.training(options.gpus[0], options.global_batch)
    print(
        f"{job.name}: {job.model}, {human(training.params)} parameters, {human(training.macs)} MACs; "
        f"{job.optimizer}, {job.precision}, {job.strategy}"
    )
    print(
        f"{gpu.name}: {_describe_speed(training, gpu, options)}; "
        f"links reach {100 * LINK_FRACTION:.0f} % of their rate (assumed)"
    )
    print_columns(format_steps(job, steps))
    memory = ", ".join(f"{name} {_format_bytes(size)}" for name, size in vars(steps[-1].memory).items())
    print(f"Memory of a GPU in the last row: {memory}")
    for warning in job.warnings(steps, gpu):
        print(f"Warning: {warning}.")
    print()


def _format_bytes(size: float) -> str:
    return f"{size / 1e9:.2f} GB" if size >= 1e9 else f"{size / 1e6:.1f} MB"


def _describe_speed(training: Training, gpu: Machine, options: argparse.Namespace) -> str:
    if options.images_per_second is not None:
        return f"{options.images_per_second:g} images/s per GPU (measured)"
    fraction = options.utilisation or UTILISATION[training.itemsize]
    return f"{100 * fraction:.3g} % of {gpu.peak[training.dtype] / 1e12:g} TFLOP/s (assumed)"
