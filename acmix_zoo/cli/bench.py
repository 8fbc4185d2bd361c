"""`acmix-zoo bench`: measure candidates, print a table, and write a CSV file and a plot."""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch

from acmix_zoo.bench import candidates, measure
from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.growth import AXES, describe_growth, grow
from acmix_zoo.bench.results import Row, format_table, write_csv
from acmix_zoo.cli.packages import require_packages
from acmix_zoo.cli.parser import Parser

_EXAMPLES = """Examples:
    acmix-zoo bench acmix_resnet50 acmix_resnet50@released resnet50
    acmix-zoo bench runs/photos/weights resnet18 --size 32 --mode both
    acmix-zoo bench acmix2d:64x56 released:64x56 conv3x3:64x56 --csv speed.csv --plot speed.png
"""

_PLOT_TYPES = (".png", ".svg", ".pdf")


def bench(arguments: Sequence[str]) -> list[Row]:
    """Run the command and return the rows that it measured.

    Raises:
        ModuleNotFoundError: a package that prints or plots the result is missing.
        ValueError, FileNotFoundError: unknown network, backend or dtype.
        acmix_zoo.bench.memory.OutOfMemory: not even one image fits.
    """
    options = _parse(arguments)
    require_packages("bench", ("rich", *["matplotlib"] * bool(options.plot)), "train")  # before minutes of measuring
    rows: list[Row] = []
    for group in _groups(options):
        rows += _measure_growth(group, options) if options.over else _measure_group(group, options)
    if options.csv:
        write_csv(rows, options.csv)
        print(f"Saved {len(rows)} rows to {options.csv}")
    if options.plot:
        from acmix_zoo.training.plots import plot_speed

        plot_speed(rows, options.plot)
        print(f"Saved the plot to {options.plot}")
    return rows


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser(
        "acmix-zoo bench",
        description="\n".join([str(measure.__doc__), str(candidates.__doc__).partition("\n\n")[2]]),
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("candidates", nargs="+", metavar="CANDIDATE", help="what to measure; the first one is the baseline of ratios")
    add("--batch", type=int, nargs="+", default=[8], help="images per pass (default: 8); halved if memory runs out")
    add("--threads", type=int, nargs="+", default=[torch.get_num_threads()], help="CPU threads (default: torch's)")
    add("--mode", choices=("inference", "training", "both"), default="inference", help="training is forward + backward")
    add("--size", type=int, default=0, help="side of the image for networks (default: the network's own)")
    add("--dtype", default="float32", help="float16, bfloat16, float32 or float64 (default: float32)")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu", help="default: cuda if available, else cpu")
    add("--repeats", type=int, default=7, help="rounds over all candidates (default: 7)")
    add("--over", choices=AXES, help="measure growth over image sizes 64 … 1024, batches 1 … 16 or depths ×1 … ×4")
    add("--no-memory", action="store_true", help="skip peak memory, which takes a process per candidate")
    add("--csv", type=Path, help="write the measurements to this file")
    add("--plot", type=Path, help="plot time against MACs into this file (.png, .svg, .pdf)")
    options: argparse.Namespace = parser.parse_args(arguments)
    for name in ("batch", "threads"):
        if min(getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.repeats < 1 or options.size < 0:
        parser.error("--repeats must be at least 1, and --size must not be negative")
    deployed = [name for name in options.candidates if candidates.parse_name(name).is_deployed]
    if deployed and options.mode != "inference":  # with `both`, the inference would be measured first
        parser.error(f"{deployed[0]} cannot be trained. Use --mode inference, or remove {candidates.DEPLOY}")
    if options.plot and options.plot.suffix.lower() not in _PLOT_TYPES:
        parser.error(f"--plot cannot write {options.plot}. Expected a name that ends in {', '.join(_PLOT_TYPES)}")
    parser.check_output("--csv", options.csv)
    parser.check_output("--plot", options.plot)
    try:
        torch.ones(1, device=options.device).item()  # the meta device has no values
    except Exception:  # each kind of device has its own errors
        parser.error(f"there is no device {options.device} here. Expected cpu, or cuda on a machine with a GPU")
    return options


def _groups(options: argparse.Namespace) -> Iterator[list[Candidate]]:
    """Yield the candidates that are measured against each other, for each combination of threads, mode and batch."""
    modes = {"inference": [False], "training": [True], "both": [False, True]}[options.mode]
    for threads in options.threads:
        for train in modes:
            for batch in options.batch:
                yield [
                    Candidate(name, batch, options.size, train, threads, options.dtype, options.device)
                    for name in options.candidates
                ]


def _measure_group(group: list[Candidate], options: argparse.Namespace) -> list[Row]:
    rows = measure.measure(group, options.repeats, not options.no_memory)
    _print_table(rows)
    if rows[0].batch < group[0].batch:
        print(f"Memory ran out at batch {group[0].batch}, so these were measured at batch {rows[0].batch}.")
    return rows


def _measure_growth(group: list[Candidate], options: argparse.Namespace) -> list[Row]:
    """Measure each candidate as it grows.

    Each size is measured by itself, since the largest one would otherwise halve the batch of all of them.
    """
    all_rows: list[Row] = []
    for candidate in group:
        rows: list[Row] = []
        for grown in grow(candidate, options.over):
            rows += measure.measure([grown], options.repeats, not options.no_memory)
        _print_table(rows)
        print("\n".join(describe_growth(rows, options.over)))
        all_rows += rows
    return all_rows


def _print_table(rows: Sequence[Row]) -> None:
    from rich.console import Console

    Console().print(format_table(rows))
