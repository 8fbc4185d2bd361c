"""Count parameters and MACs of every network, for `acmix-zoo list`.

    python -m tools.count_costs

Counting takes ten seconds, which is too long for a command that lists names, so the counts are kept in
acmix_zoo/models/costs.csv. tests/cli/test_models.py compares them with the networks.
"""

import csv
from pathlib import Path

import torch

import acmix_zoo
from acmix_zoo import create_model, list_models
from acmix_zoo.layers.complexity import complexity
from tools import make_parser

FILE = Path(acmix_zoo.__file__).parent / "models" / "costs.csv"


def count(name: str) -> tuple[str, int, int, str]:
    """Return the name, parameters, MACs and input size of a network with its default number of classes."""
    with torch.device("meta"):  # which allocates no memory
        cost = complexity(create_model(name))
    return name, cost.params, cost.macs, "×".join(map(str, cost.input_size))


if __name__ == "__main__":
    make_parser("count_costs", __doc__).parse_args()
    with FILE.open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["name", "params", "macs", "input"])
        writer.writerows(map(count, list_models()))
