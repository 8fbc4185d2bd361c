"""The command `acmix-zoo data`: check and summarise a data set without training. See `acmix_zoo.cli`."""

from __future__ import annotations

from collections.abc import Sequence

from acmix_zoo.cli.parser import Parser
from acmix_zoo.data.sources.open import open_source
from acmix_zoo.data.splits import inspect_splits, split_source
from acmix_zoo.data.summary import summarize


def data(arguments: Sequence[str]) -> bool:
    """Print the splits, classes and images of a data set, and its skipped and unreadable files.

    Returns:
        Whether all images are readable.

    Raises:
        FileNotFoundError: the data set does not exist.
        ValueError: training could not use it.
    """
    parser = Parser("acmix-zoo data", description="Check a data set without training: splits, classes, unusable files.")
    parser.add_argument("source", help="a folder, or anything else that --data.source accepts")
    parser.add_argument("--label_column", metavar="NAME", help="class column of a table that has several")
    options = parser.parse_args(arguments)
    source = open_source(options.source, options.label_column)
    splits = split_source(source)
    inspections = inspect_splits(splits, thorough=True)
    print(summarize(source, splits, inspections))
    return not any(inspection.problems for inspection in inspections.values())
