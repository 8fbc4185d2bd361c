"""The command `acmix-zoo verify`: check weights against their record."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import check_folder, read_config
from acmix_zoo.weights.fetch import weight_folder


def verify(arguments: Sequence[str]) -> bool:
    """Verify weight folders, and print for each whether it matches its record.

    Returns:
        Whether all of them do. Weights that cannot be found or downloaded do not.
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
    parser.add_argument("--data", metavar="SOURCE", help="also measure the recorded scores on these images")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    results = []
    for name in options.weights:
        results.append(_verify_one(name, options.data))
        if not options.json:
            _print(results[-1])
    if options.json:
        print(json.dumps(results, indent=2, ensure_ascii=False))
    return all(result["verified"] for result in results)


def _verify_one(name: str, source: str | None) -> dict[str, Any]:
    """Return whether weights verify, their problems, and the accuracies that were measured, all as plain values."""
    metrics: list[dict[str, Any]] = []
    try:
        folder = weight_folder(name)
    except (OSError, ValueError) as error:
        return {"name": name, "verified": False, "problems": [str(error)], "metrics": metrics}
    problems = check_folder(folder)
    if not problems and source is not None:
        from acmix_zoo.training.evaluate import evaluate_again

        try:
            for found in evaluate_again(folder, source):
                metrics.append({**found._asdict(), "is_same": found.is_same})
                if not found.is_same:
                    problems.append(_metric_comparison(metrics[-1]))
        except (OSError, ValueError) as error:  # such as images for another task; the other weights may fit
            problems.append(str(error))
    result = {"name": name, "verified": not problems, "problems": problems, "metrics": metrics}
    if not problems:
        record = read_config(folder)["acmix_zoo"]
        result |= {"sha256": record["sha256"], "parameters": record["params"]}
    return result


def _print(result: dict[str, Any]) -> None:
    """Print the metrics that match the record and whether the weights verify; and to stderr, what is wrong."""
    name = result["name"]
    for metric in result["metrics"]:
        if metric["is_same"]:
            print(f"{name}: {_metric_comparison(metric)}")
    for problem in result["problems"]:
        print(f"{name}: not verified: {problem}", file=sys.stderr)
    if result["verified"]:
        size = f"sha256 {result['sha256'][:12]}…, {result['parameters']:,} parameters"
        print(f"{name}: verified, {size}, logits replayed")


def _metric_comparison(metric: dict[str, Any]) -> str:
    return f"{metric['metric']}: {100 * metric['measured']:.2f} % measured, {100 * metric['recorded']:.2f} % recorded"
