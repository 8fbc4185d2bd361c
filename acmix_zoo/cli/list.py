"""The command `acmix-zoo list`: networks and weights with their cost and accuracy."""

from __future__ import annotations

import csv
from collections.abc import Sequence
from pathlib import Path

import timm

from acmix_zoo import models
from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.layers.complexity import human
from acmix_zoo.models.published import is_reconstruction, published
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
    options = parser.parse_args(arguments)
    names = list_models(options.pattern, options.pretrained)
    if not names:
        what = "weights match" if options.pretrained else "network matches"
        raise ValueError(
            f"no {what} {options.pattern!r}. Expected a name or a pattern such as '*swin*'. Leave it out to list all"
        )
    heads = {True: ("top-1", "from"), False: ("published", "top-1, published", "weights here")}[options.pretrained]
    rows: list[tuple[str, ...]] = [("name", "parameters", "MACs", "input", *heads)]
    costs = network_costs()
    for name in names:
        if (architecture := name.partition(".")[0]) not in costs:
            raise ValueError(f"the costs of {architecture} have not been counted. Run `python -m tools.count_costs`")
        params, macs, size = costs[architecture]
        rest = (
            _accuracy_and_origin(name)
            if options.pretrained
            else (*_published(name), ", ".join(list_tags(name)) or "none")
        )
        rows.append((name, f"{params:,}", human(macs), size, *rest))
    print_columns(rows)
    if not options.pretrained and any(map(is_reconstruction, names)):
        print("* a reconstruction: only its cost and accuracy were published (see docs/reconstructions.md)")


def network_costs() -> dict[str, tuple[int, int, str]]:
    """Return the parameters, MACs and input size of every network, as counted by tools/count_costs.py."""
    with (Path(models.__file__).parent / "costs.csv").open(newline="", encoding="utf-8") as file:
        return {row["name"]: (int(row["params"]), int(row["macs"]), row["input"]) for row in csv.DictReader(file)}


def _published(name: str) -> tuple[str, str]:
    """Return the parameters and MACs, and the top-1 accuracy, as they were published."""
    paper = published(name)
    mark = " *" if is_reconstruction(name) else ""
    return ", ".join(filter(None, paper[:2])) + mark, f"{paper.top1} %" if paper.top1 else ""


def _accuracy_and_origin(name: str) -> tuple[str, str]:
    """Return the accuracy of weights with its data set, and where the weights come from."""
    folder = shipped_folder(name)
    if folder is not None:
        metrics = [m for m in read_config(folder)["acmix_zoo"]["metrics"] if m["name"] == "top1"]
        if not metrics:
            return "", "shipped"
        last = metrics[-1]
        return f"{100 * last['value']:.2f} % {last['dataset']} {last['split']}", "shipped"
    if is_official(name):
        metric = official_record(name.partition(".")[0])["metrics"][0]
        return f"{100 * metric['value']:.1f} % imagenet-1k val (the authors')", "the authors' links"
    cfg = timm.get_pretrained_cfg(name)
    return "", f"hf-hub:{cfg.hf_hub_id if cfg else '?'}, a plain Swin"
