"""The command `acmix-zoo verify`: check weights against their record."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import check_folder, read_config
from acmix_zoo.weights.fetch import weight_folder


def verify(arguments: Sequence[str]) -> bool:
    """Verify weight folders, and print for each whether it matches its record.

    Returns:
        Whether all of them do.

    Raises:
        FileNotFoundError: there are no weights of a given name.
    """
    parser = Parser(
        "acmix-zoo verify",
        description="Verify weights: their record, size, sha256, numbers of parameters and MACs, and stored logits.",
    )
    parser.add_argument(
        "weights",
        nargs="+",
        help="weight folders, run folders, names of weights on this machine, or ORG/NAME on the Hugging Face Hub",
    )
    parser.add_argument("--data", metavar="SOURCE", help="also measure the accuracy on these images")
    options = parser.parse_args(arguments)
    results = [_verify_one(name, weight_folder(name), options.data) for name in options.weights]
    return all(results)


def _verify_one(name: str, folder: Path, source: str | None) -> bool:
    problems = check_folder(folder)
    if not problems and source:
        problems = _measure_again(name, folder, source)
    for problem in problems:
        print(f"{name}: NOT VERIFIED: {problem}", file=sys.stderr)
    if not problems:
        record = read_config(folder)["acmix_zoo"]
        print(f"{name}: verified, sha256 {record['sha256'][:12]}…, {record['params']:,} parameters, logits replayed")
    return not problems


def _measure_again(name: str, folder: Path, source: str) -> list[str]:
    """Measure the recorded accuracies again, print those that match, and return the others as problems."""
    from acmix_zoo.training.evaluate import evaluate_again

    problems = []
    for found in evaluate_again(folder, source):
        text = f"{found.metric}: {100 * found.measured:.2f} % measured, {100 * found.recorded:.2f} % recorded"
        if found.is_same:
            print(f"{name}: {text}")
        else:
            problems.append(text)
    return problems
