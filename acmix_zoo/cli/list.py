"""The command `acmix-zoo list`: networks and weights with their cost and accuracy."""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import timm

from acmix_zoo import models
from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.layers.complexity import human
from acmix_zoo.models.published import is_reconstruction, published
from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind, config_task
from acmix_zoo.weights import list_models, read_config
from acmix_zoo.weights.names import list_tags
from acmix_zoo.weights.official import is_official, official_record
from acmix_zoo.weights.shipped import shipped_folder


def list_networks(arguments: Sequence[str]) -> None:
    """Print the networks or the weights, with their cost and accuracy.

    Raises:
        ValueError: nothing matches the pattern.
    """
    parser = Parser("acmix-zoo list", description="List the networks and their weights.")
    parser.add_argument("pattern", nargs="?", default="", help='wildcard, such as "*swin*"')
    parser.add_argument("--pretrained", action="store_true", help="weights, as architecture.tag, instead of networks")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    names = list_models(options.pattern, options.pretrained)
    if not names:
        what = "weights match" if options.pretrained else "network matches"
        is_of_weights = not options.pretrained and list_models(options.pattern, True)
        advice = "It matches weights. Add --pretrained to list them" if is_of_weights else "Leave it out to list all"
        raise ValueError(f"no {what} {options.pattern!r}. Expected a name or a pattern such as '*swin*'. {advice}")
    entries = [_weights_entry(name) if options.pretrained else _network_entry(name) for name in names]
    if options.json:
        print(json.dumps(entries, indent=2, ensure_ascii=False))
    elif options.pretrained:
        _print_weights(entries)
    else:
        _print_networks(entries)


def _network_entry(name: str) -> dict[str, Any]:
    """Return what is known about a network. The published numbers are as they were printed, with their units."""
    paper = published(name)
    return {
        **_cost_entry(name),
        "published": {
            "parameters": paper.params or None,
            "macs": paper.macs or None,
            "top1": float(paper.top1) if paper.top1 else None,
        },
        "is_reconstruction": is_reconstruction(name),
        "weights": list_tags(name),
    }


def _weights_entry(name: str) -> dict[str, Any]:
    """Return what is known about weights, with their main metric between 0 and 1 and where they come from."""
    if folder := shipped_folder(name):
        return _shipped_entry(name, folder)
    if is_official(name):
        metric = official_record(name.partition(".")[0])["metrics"][0]
        metric, origin = {**metric, "dataset": metric["dataset"].rpartition("/")[2]}, "the authors' links"
    else:
        cfg = timm.get_pretrained_cfg(name)
        metric, origin = None, f"hf-hub:{cfg.hf_hub_id if cfg else '?'}, a plain Swin"
    return {**_cost_entry(name), "score": _score(metric, CLASSIFICATION), "from": origin}


def _shipped_entry(name: str, folder: Path) -> dict[str, Any]:
    """Return what the record of shipped weights says."""
    config = read_config(folder)
    record, task = config["acmix_zoo"], config_task(config)
    costs = {"parameters": record["params"], "macs": record["macs"], "input": config["pretrained_cfg"]["input_size"]}
    metrics = [metric for metric in record["metrics"] if metric["name"] == task.main_metric]
    return {"name": name, **costs, "score": _score(metrics[-1] if metrics else None, task), "from": "shipped"}


def _score(metric: Mapping[str, Any] | None, task: TaskKind) -> dict[str, Any] | None:
    """Return a metric of a record, with its label."""
    if metric is None:
        return None
    return {"metric": task.metrics[metric["name"]], **{key: metric[key] for key in ("value", "dataset", "split")}}


def _cost_entry(name: str) -> dict[str, Any]:
    costs = network_costs()
    if (architecture := name.partition(".")[0]) not in costs:
        raise ValueError(f"the costs of {architecture} have not been counted. Run `python -m tools.count_costs`")
    params, macs, size = costs[architecture]
    return {"name": name, "parameters": params, "macs": macs, "input": [int(side) for side in size.split("×")]}


def network_costs() -> dict[str, tuple[int, int, str]]:
    """Return the parameters, MACs and input size of every network, as counted by tools/count_costs.py."""
    with (Path(models.__file__).parent / "costs.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: (int(row["params"]), int(row["macs"]), row["input"]) for row in csv.DictReader(file)}


def _print_networks(entries: Sequence[dict[str, Any]]) -> None:
    rows = [(*_COST_HEADS, "published", "top-1, published", "weights")]
    for entry in entries:
        paper = entry["published"]
        mark = " *" if entry["is_reconstruction"] else ""
        costs = ", ".join(filter(None, (paper["parameters"], paper["macs"]))) + mark
        top1 = f"{paper['top1']} %" if paper["top1"] else ""
        is_shipped = {tag: shipped_folder(f"{entry['name']}.{tag}") is not None for tag in entry["weights"]}
        tags = ", ".join(tag if shipped else f"{tag} (download)" for tag, shipped in is_shipped.items())
        rows.append((*_cost_cells(entry), costs, top1, tags or "none"))
    print_columns(rows)
    if any(entry["is_reconstruction"] for entry in entries):
        print("* a reconstruction: only its cost and accuracy were published (see docs/reconstructions.md)")


def _print_weights(entries: Sequence[dict[str, Any]]) -> None:
    rows = [(*_COST_HEADS, "score", "from")]
    for entry in entries:
        found = entry["score"]
        # the authors state one decimal, and did not measure with this package
        digits, author = (1, " (the authors')") if is_official(entry["name"]) else (2, "")
        where = f"{found['dataset']} {found['split']}{author}" if found else ""
        text = f"{100 * found['value']:.{digits}f} % {found['metric']}, {where}" if found else ""
        rows.append((*_cost_cells(entry), text, entry["from"]))
    print_columns(rows)


_COST_HEADS = ("name", "parameters", "MACs", "input")


def _cost_cells(entry: dict[str, Any]) -> tuple[str, str, str, str]:
    return entry["name"], f"{entry['parameters']:,}", human(entry["macs"]), "×".join(map(str, entry["input"]))
