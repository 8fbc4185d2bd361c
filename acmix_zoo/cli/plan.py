"""The verb plan: what a recipe takes on n GPUs. See `acmix_zoo.cli` and docs/scaling.md."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.columns import print_columns
from acmix_zoo.cli.parser import Parser
from acmix_zoo.layers.complexity import human
from acmix_zoo.scaling.jobs import PRECISIONS, read_job
from acmix_zoo.scaling.machines import GPUS, LINK_SHARE, machine
from acmix_zoo.scaling.plan_table import rows
from acmix_zoo.scaling.step import UTILISATION
from acmix_zoo.weights.shipped import find_recipe, suggest_recipes

COUNTS = [1, 8, 32, 256, 1024]


def plan(arguments: Sequence[str]) -> None:
    """Print memory, time, communication and efficiency of recipes on so many GPUs: arithmetic, nothing is run.

    Raises:
        FileNotFoundError, ValueError: no such recipe, network or GPU; impossible numbers.
    """
    parser = Parser(
        "acmix-zoo plan",
        description="What a recipe takes on n GPUs, by the model of docs/scaling.md. Nothing is run, no GPU is needed. "
        "Where n GPUs have less than the recipe's batch they accumulate, as the recipe does.",
    )
    parser.add_argument(
        "recipes",
        nargs="+",
        metavar="RECIPE",
        help="a recipe, a YAML file or the name of a network",
    )
    parser.add_argument("--overlay", metavar="PROFILE", help="hardware/fsdp or a YAML file: precision and strategy")
    parser.add_argument("--gpus", type=int, nargs="+", default=COUNTS, metavar="N", help="default: %(default)s")
    parser.add_argument("--gpu", default="a100", help=f"{', '.join(GPUS)} (default: a100)")
    parser.add_argument("--nodes-of", type=int, default=8, metavar="N", help="GPUs a node (default: 8)")
    parser.add_argument("--network", type=float, metavar="GBIT", help="Gbit/s a node (default: the makers' systems)")
    parser.add_argument("--batch", type=int, help="images a GPU and pass (default: the recipe's)")
    parser.add_argument("--global-batch", type=int, metavar="N", help="images of all GPUs at most")
    parser.add_argument("--precision", choices=PRECISIONS, help="default: the recipe's; of a name bf16-mixed")
    parser.add_argument("--strategy", choices=("ddp", "fsdp"), help="default: the recipe's, or ddp")
    parser.add_argument("--utilisation", type=float, help="share of the peak (default: 0.1; in float32 0.3)")
    parser.add_argument("--images-per-second", type=float, metavar="X", help="as one GPU was measured to train")
    options = parser.parse_args(arguments)
    gpu = machine(options.gpu)
    if options.network is not None:
        gpu = gpu.with_network(options.network, options.nodes_of)
    overlay = Path(_file(options.overlay)) if options.overlay else None
    for name in options.recipes:
        job = read_job(
            _file(name), overlay, batch=options.batch, precision=options.precision, strategy=options.strategy
        )
        measured = {"utilisation": options.utilisation, "rate": options.images_per_second}
        steps = job.steps(gpu, options.gpus, options.nodes_of, options.global_batch, **measured)
        first = job.training(options.gpus[0], options.global_batch)
        peak = gpu.peak[first.dtype]
        speed = (
            f"{100 * (options.utilisation or UTILISATION[first.itemsize]):.3g} % of {peak / 1e12:g} TFLOP/s, assumed"
        )
        if options.images_per_second is not None:
            speed = f"{options.images_per_second:g} images/s, measured"
        print(
            f"{name}: {job.model}, {human(first.params)} parameters, {human(first.macs)} MACs; {job.optimizer}, "
            f"{job.precision}, {job.strategy}\n"
            f"{gpu.name}: {speed}; a link reaches {100 * LINK_SHARE:.0f} % of its rate, assumed"
        )
        print_columns(rows(job, steps))
        m = steps[-1].memory
        print("memory at the last: " + ", ".join(f"{key} {value / 1e9:.2f} GB" for key, value in vars(m).items()))
        for warning in job.warnings(steps, gpu):
            print(f"note: {warning}")
        print()


def _file(name: str) -> str:
    """Return the file of a recipe that is given with its group, such as imagenet1k/acmix_swin_t; other names unchanged.

    Raises:
        FileNotFoundError: there is no such recipe. The error lists the closest ones.
    """
    if "/" not in name or Path(name).exists():
        return name
    recipe = find_recipe(name)
    if recipe is None:
        raise FileNotFoundError(f"plan: {name} does not exist; {suggest_recipes(name)}")
    return str(recipe)
