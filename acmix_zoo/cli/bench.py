"""`acmix-zoo bench`: measure, print a table, write a CSV and a picture."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from acmix_zoo.bench import measure as benchmark
from acmix_zoo.bench.candidates import Case
from acmix_zoo.bench.growth import OVER, growth_cases, growths
from acmix_zoo.bench.measure import Row, measure
from acmix_zoo.bench.table import print_table, write_csv
from acmix_zoo.cli.parser import Parser


def bench(arguments: Sequence[str]) -> list[Row]:
    """Run the command; `--help` tells the options.

    Raises:
        ValueError: no such network, form or dtype.
        benchmark.OutOfMemory: not even one image fits.
    """
    parser = Parser(
        "acmix-zoo bench",
        description=benchmark.__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add("contestants", nargs="+", metavar="contestant", help="see above; ratios are against the first")
    add("--batch", type=int, nargs="+", default=[8], help="images a pass (default: 8); halved when memory runs out")
    add("--threads", type=int, nargs="+", default=[torch.get_num_threads()])
    add("--mode", choices=("inference", "training", "both"), default="inference", help="training is forward + backward")
    add("--size", type=int, default=0, help="side of a network's image (default: the network's own)")
    add("--dtype", default="float32")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--repeats", type=int, default=7, help="rounds (default: 7)")
    add("--over", choices=OVER, help="measure growth over image sizes 64 … 1024, batches 1 … 16 or depths ×1 … ×4")
    add("--no-memory", action="store_true", help="do not measure peak memory, which takes a process each")
    add("--csv", type=Path, help="write the figures there")
    add("--plot", type=Path, help="draw time against MACs there (.png, .svg, .pdf)")
    options = parser.parse_args(arguments)
    for name in ("batch", "threads"):
        if min(getattr(options, name)) < 1:
            parser.error(f"--{name} must be at least 1")
    if options.repeats < 1 or options.size < 0:
        parser.error("--repeats must be at least 1, and --size not negative")

    rows: list[Row] = []
    modes = {"inference": [False], "training": [True], "both": [False, True]}[options.mode]
    for threads in options.threads:
        for train in modes:
            for batch in options.batch:
                kind = dict(batch=batch, size=options.size, train=train, threads=threads)
                cases = [Case(name, **kind, dtype=options.dtype, device=options.device) for name in options.contestants]
                groups = [growth_cases(case, options.over) for case in cases] if options.over else [cases]
                for group in groups:
                    # Growing cases are not contestants: the largest would make the batch of all of them small.
                    parts = [[case] for case in group] if options.over else [group]
                    found = [row for part in parts for row in measure(part, options.repeats, not options.no_memory)]
                    print_table(found)
                    if found[0].batch < batch and not options.over:
                        print(f"memory ran out at batch {batch}: measured with {found[0].batch}")
                    if options.over:
                        print("\n".join(growths(found, options.over)))
                    rows += found
    if options.csv:
        write_csv(rows, options.csv)
    if options.plot:
        from acmix_zoo.training.plots import plot_speed

        plot_speed(rows, options.plot)
    return rows
