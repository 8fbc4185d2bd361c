"""The command `acmix-zoo data`: check and summarise a data set without training. See `acmix_zoo.cli`."""

from __future__ import annotations

from collections.abc import Sequence

from acmix_zoo.cli.parser import Parser
from acmix_zoo.data.sources.base import open_source
from acmix_zoo.data.summary import split_parts, summarize


def data(arguments: Sequence[str]) -> bool:
    """Print the splits, classes and images of a data set, and its skipped and unreadable files.

    Returns:
        Whether no unreadable image was found.

    Raises:
        FileNotFoundError, ValueError: the data set does not exist, or training would refuse it.
    """
    parser = Parser("acmix-zoo data", description="Check a data set without training: splits, classes, unusable files.")
    parser.add_argument("source", help="a folder, or anything else that --data.source accepts")
    parser.add_argument("--label_column", metavar="NAME", help="class column of a table that has several")
    options = parser.parse_args(arguments)
    source = open_source(options.source, options.label_column)
    parts = split_parts(source, val_fraction=0.1, seed=0)  # the defaults of ImageDataModule
    found = {name: images.inspect(indices.tolist(), name == "test") for name, (images, indices) in parts.items()}
    print(summarize(source, parts, found))
    return not any(inspection.problems for inspection in found.values())
