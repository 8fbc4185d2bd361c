"""The verbs that look at networks: list and info. See `acmix_zoo.cli`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, cast

import timm
import torch
from torch import nn

from acmix_zoo.cli.parser import Parser
from acmix_zoo.layers.complexity import complexity, human
from acmix_zoo.layers.cost import LAYERS
from acmix_zoo.layers.stages import Stages, stage_table
from acmix_zoo.models.published import is_reconstruction, published
from acmix_zoo.weights import create_model, list_models, official, read_config
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.shipped import checkpoints_root


def list_(arguments: Sequence[str]) -> None:
    """Print the networks, or the weights, with what they cost and what they reach."""
    parser = Parser("acmix-zoo list", description="List the networks and their weights.")
    parser.add_argument("pattern", nargs="?", default="", help='wildcard, such as "*swin*"')
    parser.add_argument("--pretrained", action="store_true", help="weights, as architecture.tag, instead of networks")
    options = parser.parse_args(arguments)
    names = list_models(options.pattern, options.pretrained)
    if not names:
        raise ValueError(f"no {'weights' if options.pretrained else 'network'} of that name: {options.pattern!r}")
    heads = {True: ("top-1", "from"), False: ("published", "top-1, published", "weights here")}[options.pretrained]
    rows: list[tuple[str, ...]] = [("name", "parameters", "MACs", "input", *heads)]
    for name in names:
        with torch.device("meta"):  # counting takes no memory and no time
            found = complexity(create_model(name))
        size = "×".join(map(str, found.input_size))
        rest = _known(name) if options.pretrained else (*_printed(name), ", ".join(tags(name)) or "none")
        rows.append((name, f"{found.params:,}", human(found.macs), size, *rest))
    print_columns(rows)
    if not options.pretrained and any(map(is_reconstruction, names)):
        print("* a reconstruction: only its costs and its score were published; docs/reconstructions.md")


def _printed(name: str) -> tuple[str, str]:
    """(parameters and MACs, top-1) as they were published."""
    of = published(name)
    return ", ".join(filter(None, of[:2])) + " *" * is_reconstruction(name), f"{of.top1} %" if of.top1 else ""


def tags(name: str) -> list[str]:
    """Those of a network's weights."""
    return [weights.partition(".")[2] for weights in list_models(f"{name}.*", pretrained=True)]


def _known(name: str) -> tuple[str, str]:
    """(top-1 and of what, where the weights come from)."""
    folder = shipped(name)
    if folder is not None:
        metrics = [m for m in read_config(folder)["acmix_zoo"]["metrics"] if m["name"] == "top1"]
        said = f"{100 * metrics[-1]['value']:.2f} % {metrics[-1]['dataset']} {metrics[-1]['split']}" if metrics else ""
        return said, "shipped"
    architecture, _, tag = name.partition(".")
    if tag == official.TAG:
        metric = official.official_record(architecture)["metrics"][0]
        return f"{100 * metric['value']:.1f} % imagenet-1k val (the authors')", "the authors' links"
    cfg = timm.get_pretrained_cfg(name)
    return "", f"hf-hub:{cfg.hf_hub_id if cfg else '?'}, a plain Swin"


def shipped(name: str) -> Path | None:
    """The folder of weights that came with the package."""
    root = checkpoints_root()
    folder = root / name if root else None
    return folder if folder and (folder / "config.json").is_file() else None


def info(arguments: Sequence[str]) -> None:
    """Print the properties of a network and, for ACmix networks, the paper's table of both stages of every layer."""
    parser = Parser(
        "acmix-zoo info",
        description="Show the parameters, MACs, input and weights of a network. For ACmix networks, also show the cost "
        "of the projections to q, k and v (stage I) and of the attention and convolution on them (stage II) in every "
        "layer, as in table 1 of the paper.",
    )
    parser.add_argument("model", help="name of a network or of weights, or path of a weight folder or run folder")
    parser.add_argument("--size", type=int, help="side of the image (default: the network's own)")
    options = parser.parse_args(arguments)
    place = locate(options.model)
    folder = place if (place / "config.json").is_file() else shipped(options.model)
    if folder is not None:
        model: nn.Module = create_model(folder)
    elif place.is_file():
        model = create_model(place)
    else:
        with torch.device("meta"):
            model = create_model(options.model)
    model = model.to("meta")
    size = None if options.size is None else (int(model.in_chans), options.size, options.size)  # type: ignore[arg-type]
    whole = complexity(model, size)
    print(f"{options.model}: {whole}")
    for name, text in _facts(model, folder):
        print(f"{name:<8} {text}")
    if any(isinstance(layer, LAYERS) for layer in model.modules()):
        _print_stages(model, size)
    else:
        print("This network has no ACmix layers, so there is no table of the two stages.")


def _facts(model: nn.Module, folder: Path | None) -> list[tuple[str, str]]:
    """Return (name, text) pairs with what a user needs to know; `folder` is the network's weight folder, if any."""
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
        record = read_config(folder).get("acmix_zoo", {})
        scores = [
            f"{m['split']} {m['name']} {100 * m['value']:.2f} %"
            for m in record.get("metrics", [])
            if m["name"] == "top1"
        ]
        facts.append(("weights", ", ".join([str(record.get("name", folder)), *scores])))
        facts.append(("licence", str(record.get("license") or "none stated")))
        return facts
    architecture = str(cfg.get("architecture", ""))
    found = timm.list_models(f"{architecture}.*", pretrained=True)  # includes timm's own networks
    facts.append(("weights", ", ".join(name.partition(".")[2] for name in found) or "none"))
    facts.append(("licence", str(cfg.get("license") or "none stated")))
    return facts


def _print_stages(model: nn.Module, size: tuple[int, int, int] | None) -> None:
    """Print the cost of both stages of every ACmix layer, and which stage dominates."""
    layers, total, rest = stage_table(model, size)
    cells = [("layer", "I: parameters", "MACs", "II: parameters", "MACs", "I of the MACs")]
    cells += [
        (row.name, f"{row.params[0]:,}", human(row.macs[0]), f"{row.params[1]:,}", human(row.macs[1]), _share(row.macs))
        for row in (*layers, total)
    ]
    cells.append((rest.name, f"{rest.params[0]:,}", human(rest.macs[0]), "", "", ""))
    print_columns(cells)
    print(verdict(layers, total))


def verdict(layers: Sequence[Stages], total: Stages) -> str:
    """Whether stage I dominates, as the paper says, of all layers together and of each."""
    shares = f"{_share(total.params)} of the parameters and {_share(total.macs)} of the MACs"
    word = "dominates" if total.first_dominates else "does NOT dominate"
    against = [row for row in layers if not row.first_dominates]
    said = f"Stage I {word}: it has {shares} of both stages"
    if not against:
        return said + ", and more than stage II in every layer."
    names = ", ".join(row.name for row in against[:3]) + (", …" if len(against) > 3 else "")
    return said + f", but in {len(against)} of {len(layers)} layers ({names}) stage II has as much, or more."


def _share(pair: tuple[int, int]) -> str:
    return f"{100 * pair[0] / max(sum(pair), 1):.0f} %"


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of words as columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())
