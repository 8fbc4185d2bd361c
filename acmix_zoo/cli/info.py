"""The command `acmix-zoo info`: show a network with the two stages of its layers, or the environment."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import torch
from torch import nn

from acmix_zoo.cli.backend_report import print_backends
from acmix_zoo.cli.environment_report import environment, print_environment
from acmix_zoo.cli.parser import MODEL_HELP, Parser
from acmix_zoo.cli.text_table import print_columns
from acmix_zoo.layers.complexity import Complexity, complexity, human
from acmix_zoo.layers.cost import TwoStageLayer
from acmix_zoo.layers.stages import StageCost, stage_table
from acmix_zoo.models.task_kinds import config_task
from acmix_zoo.weights import create_model, from_pretrained, read_config
from acmix_zoo.weights.fetch import fetch, installed_folder
from acmix_zoo.weights.locate import Kind, locate
from acmix_zoo.weights.names import list_tags


def info(arguments: Sequence[str]) -> None:
    """Print the properties of a network and, for ACmix networks, the paper's table of both stages of every layer."""
    parser = Parser(
        "acmix-zoo info",
        description="Show the parameters, MACs, input and weights of a network. For ACmix networks, also show the cost "
        "of the projections to q, k and v (stage I) and of the attention and convolution on them (stage II) in every "
        "layer, as in table 1 of the paper. Without a model, show the versions, devices and backend of this machine.",
    )
    what = parser.add_mutually_exclusive_group()
    what.add_argument("model", nargs="?", help=MODEL_HELP)
    what.add_argument(
        "--backends",
        action="store_true",
        help="show which backend runs the layers on this machine, and how to get a faster one",
    )
    parser.add_argument("--size", type=int, help="side length of the image (default: the network's)")
    parser.add_argument("--json", action="store_true", help="print JSON, for programs")
    options = parser.parse_args(arguments)
    if options.size is not None and options.size < 1:
        parser.error("--size must be at least 1")
    if options.backends and options.json:
        parser.error("--json does not apply to --backends. Leave out one of them")
    if options.backends:
        return print_backends()
    if options.model is None:
        return print(json.dumps(environment(), indent=2)) if options.json else print_environment()
    location = locate(options.model, prefers_paths=True)
    path = installed_folder(options.model) if location.kind is Kind.NETWORK else fetch(location)
    if path is not None:
        model: nn.Module = from_pretrained(path)
    else:
        with torch.device("meta"):
            model = create_model(options.model)
    folder = path if path is not None and path.is_dir() else None
    model = model.to("meta")
    size = None if options.size is None else (int(model.in_chans), options.size, options.size)  # type: ignore[arg-type]
    try:
        cost = complexity(model, size)
    except Exception as error:  # whatever the layers of any network raise
        if size is None:
            raise
        raise ValueError(
            f"{options.model} does not work with images of {options.size}×{options.size} pixels "
            f"({str(error) or type(error).__name__}). Use a different --size"
        ) from error
    if options.json:
        print(json.dumps(_as_json(options.model, model, cost, folder, size), indent=2, ensure_ascii=False))
        return
    print(f"{options.model}: {cost}")
    for name, text in _facts(model, folder):
        print(f"{name:<8} {text}")
    if any(isinstance(layer, TwoStageLayer) for layer in model.modules()):
        _print_stages(model, size)
    else:
        print("This network has no ACmix layers, so there is no table of the two stages.")


def _facts(model: nn.Module, folder: Path | None) -> list[tuple[str, str]]:
    """Return the facts to print as (name, text). `folder` is the network's weight folder, or None."""
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    size, mean, std = (
        "×".join(map(str, cfg["input_size"])),
        *(", ".join(f"{v:g}" for v in cfg[k]) for k in ("mean", "std")),
    )
    facts = [("input", f"{size}, mean ({mean}), std ({std}), {cfg['interpolation']}, crop {cfg['crop_pct']:g}")]
    labels = cfg.get("label_names")
    named = f": {', '.join(labels[:10])}{', …' if len(labels) > 10 else ''}" if labels else ""
    facts.append(("classes", f"{model.num_classes}{named}"))
    if folder is not None:
        config = read_config(folder)
        record, main = config.get("acmix_zoo", {}), config_task(config).main_metric
        scores = [
            f"{m['split']} {m['name']} {100 * m['value']:.2f} %" for m in record.get("metrics", []) if m["name"] == main
        ]
        facts.append(("weights", ", ".join([str(record.get("name", folder)), *scores])))
        facts.append(("licence", str(record.get("license") or "none stated")))
        return facts
    facts.append(("weights", ", ".join(list_tags(str(cfg.get("architecture", "")))) or "none"))
    facts.append(("licence", str(cfg.get("license") or "none stated")))
    return facts


def _as_json(
    name: str, model: nn.Module, cost: Complexity, folder: Path | None, size: tuple[int, int, int] | None
) -> dict[str, Any]:
    """Return everything that the command prints as plain values, with metrics between 0 and 1."""
    cfg = cast(dict[str, Any], model.pretrained_cfg)
    record = read_config(folder).get("acmix_zoo", {}) if folder is not None else {}
    has_stages = any(isinstance(layer, TwoStageLayer) for layer in model.modules())
    return {
        "name": name,
        "parameters": cost.params,
        "macs": cost.macs,
        "input": list(cost.input_size),
        **{key: cfg[key] for key in ("mean", "std", "interpolation", "crop_pct")},
        "num_classes": model.num_classes,
        "class_names": cfg.get("label_names"),
        "weights": record.get("name"),
        "metrics": record.get("metrics", []),
        "license": record.get("license") or cfg.get("license"),
        "stages": [
            {"layer": row.name, "parameters": list(row.params), "macs": list(row.macs)}
            for row in (stage_table(model, size).layers if has_stages else ())
        ],
    }


def _print_stages(model: nn.Module, size: tuple[int, int, int] | None) -> None:
    """Print the cost of both stages of every ACmix layer, and which stage dominates."""
    layers, total, rest = stage_table(model, size)
    cells = [("layer", "I: parameters", "MACs", "II: parameters", "MACs", "MACs in stage I")]
    cells += [
        (row.name, f"{row.params[0]:,}", human(row.macs[0]), f"{row.params[1]:,}", human(row.macs[1]), _share(row.macs))
        for row in (*layers, total)
    ]
    cells.append((rest.name, f"{rest.params[0]:,}", human(rest.macs[0]), "", "", ""))
    print_columns(cells)
    print(verdict(layers, total))


def verdict(layers: Sequence[StageCost], total: StageCost) -> str:
    """Return a sentence that says whether stage I dominates, as the paper states, in total and in every layer."""
    shares = f"{_share(total.params)} of the parameters and {_share(total.macs)} of the MACs"
    verb = "dominates" if total.first_dominates else "does not dominate"
    against = [row for row in layers if not row.first_dominates]
    text = f"Stage I {verb}: it has {shares} of both stages"
    if not against:
        return text + ", and more parameters and MACs than stage II in every layer."
    names = ", ".join(row.name for row in against[:3]) + (", …" if len(against) > 3 else "")
    return (
        text
        + f". In {len(against)} of {len(layers)} layers ({names}), stage II has at least as many parameters or MACs."
    )


def _share(pair: tuple[int, int]) -> str:
    return f"{100 * pair[0] / max(sum(pair), 1):.0f} %"
