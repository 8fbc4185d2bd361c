"""The command `acmix-zoo export`: write the weights of a run to a weight folder."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import read_config


def export(arguments: Sequence[str]) -> None:
    """Export the weights of a run or of a training checkpoint to a weight folder.

    Raises:
        FileNotFoundError: the run or checkpoint does not exist.
        ValueError: this is not a checkpoint of `acmix-zoo fit`, or it has no averaged weights.
    """
    parser = Parser("acmix-zoo export", description="Export the weights of a run to a weight folder.")
    parser.add_argument("run", help="run folder, training checkpoint, or weights to copy")
    parser.add_argument("folder", type=Path, help="output folder")
    parser.add_argument("--no-ema", action="store_true", help="export the trained weights, not their moving average")
    options = parser.parse_args(arguments)
    from acmix_zoo.training.export_weights import export_run

    folder = export_run(options.run, options.folder, averaged=not options.no_ema)
    print(f"{folder}: {read_config(folder)['acmix_zoo']['name']}; verified")
