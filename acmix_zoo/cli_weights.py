"""The verbs for weights: list, verify, convert, export, push, pull. See `acmix_zoo.cli`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import timm
import torch

from acmix_zoo.layers.complexity import complexity, human
from acmix_zoo.models._registry import checkpoints_root
from acmix_zoo.weights import check_folder, create_model, hub, list_models, official, read_config
from acmix_zoo.weights.convert import convert


def list_(arguments: Sequence[str]) -> None:
    """Print the networks, or the weights, with what they cost and what they reach."""
    parser = argparse.ArgumentParser("acmix-zoo list", description="The networks and their weights.")
    parser.add_argument("pattern", nargs="?", default="", help='wildcard, such as "*swin*"')
    parser.add_argument("--pretrained", action="store_true", help="weights, as architecture.tag, instead of networks")
    options = parser.parse_args(arguments)
    names = list_models(options.pattern, options.pretrained)
    if not names:
        raise ValueError(f"no {'weights' if options.pretrained else 'network'} of that name: {options.pattern!r}")
    heads = ("name", "parameters", "MACs", "input", *(("top-1", "from") if options.pretrained else ("weights",)))
    rows: list[tuple[str, ...]] = [heads]
    for name in names:
        with torch.device("meta"):  # counting takes no memory and no time
            found = complexity(create_model(name))
        rest = _known(name) if options.pretrained else (", ".join(_tags(name)) or "none",)
        size = "×".join(map(str, found.input_size))
        rows.append((name, f"{found.params:,}", human(found.macs), size, *rest))
    print_columns(rows)


def _tags(name: str) -> list[str]:
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


def print_columns(rows: Sequence[Sequence[str]]) -> None:
    """Rows of words as columns."""
    widths = [max(len(row[i]) for row in rows) for i in range(len(rows[0]))]
    for row in rows:
        print("  ".join(word.ljust(width) for word, width in zip(row, widths, strict=True)).rstrip())


def verify(arguments: Sequence[str]) -> bool:
    """Verify weight folders; returns whether all are what they say."""
    parser = argparse.ArgumentParser(
        "acmix-zoo verify", description="Verify weight folders: record, size, sha256, counts, and logits replayed."
    )
    parser.add_argument("weights", nargs="+", help="weight folders, or names: shipped, fetched, or org/name of the Hub")
    parser.add_argument("--data", metavar="SOURCE", help="measure the recorded accuracy again on this source of images")
    options = parser.parse_args(arguments)
    good = True
    for name in options.weights:
        folder = _folder(name)
        problems = check_folder(folder)
        if not problems and options.data:
            from acmix_zoo.analysis.evaluate import compare

            for what, recorded, measured, same in compare(folder, options.data):
                text = f"{what}: {100 * measured:.2f} % measured, {100 * recorded:.2f} % recorded"
                if same:
                    print(f"{name}: {text}")
                else:
                    problems.append(text)
        record = read_config(folder).get("acmix_zoo", {}) if (folder / "config.json").is_file() else {}
        good = good and not problems
        for problem in problems:
            print(f"{name}: NOT VERIFIED: {problem}", file=sys.stderr)
        if not problems:
            print(
                f"{name}: verified, sha256 {record['sha256'][:12]}…, {record['params']:,} parameters, logits replayed"
            )
    return good


def _folder(name: str) -> Path:
    """The weight folder that a name or a path means."""
    if (Path(name) / "config.json").is_file():
        return Path(name)
    names = [n for n in (name, *(f"{name}.{tag}" for tag in _tags(name))) if "." in n]
    for full in names:
        architecture, _, tag = full.partition(".")
        found = shipped(full) or (official.official_folder(architecture) if tag == official.TAG else None)
        if found is not None and (found / "config.json").is_file():
            return found
    if hub.is_repository(name):
        return hub.whole(name)
    raise FileNotFoundError(
        f"{name} is neither a weight folder nor weights that are here; `acmix-zoo list --pretrained`"
    )


def convert_(arguments: Sequence[str]) -> None:
    """Turn a checkpoint file into a weight folder."""
    parser = argparse.ArgumentParser("acmix-zoo convert", description="A checkpoint file as a weight folder.")
    parser.add_argument("file", type=Path, help="of the authors, Lightning, timm, plain torch, or safetensors")
    parser.add_argument("folder", type=Path, nargs="?", help="where to (default: weights/NAME, for the authors' files "
                        "the cache that pretrained= reads)")  # fmt: skip
    parser.add_argument("--model", required=True, metavar="NAME", help="architecture or architecture.tag, such as "
                        f"acmix_swin_t.{official.TAG}")  # fmt: skip
    options = parser.parse_intermixed_args(arguments)  # FOLDER may come last
    architecture, _, tag = options.model.partition(".")
    record: dict[str, Any] = {"origin": f"converted from {options.file.name}"}
    place = options.folder or Path("weights") / options.model
    if tag == official.TAG and architecture in official.LINKS:
        record = {**official.official_record(architecture), "source": {"file": options.file.name}}
        place = options.folder or official.official_folder(architecture)
    folder = convert(options.file, options.model, place, record)
    print(f"{folder}: {read_config(folder)['acmix_zoo']['params']:,} parameters; verified")


def export(arguments: Sequence[str]) -> None:
    """Turn a run or a Lightning checkpoint into a weight folder."""
    parser = argparse.ArgumentParser("acmix-zoo export", description="A run's weights as a weight folder.")
    parser.add_argument("run", type=Path, help="run folder, or Lightning checkpoint")
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--no-ema", action="store_true", help="the trained weights, not their moving average")
    options = parser.parse_args(arguments)
    from acmix_zoo.training.export import export_run

    folder = export_run(options.run, options.folder, averaged=not options.no_ema)
    print(f"{folder}: {read_config(folder)['acmix_zoo']['name']}; verified")


def push(arguments: Sequence[str]) -> None:
    """Publish a weight folder on the Hub."""
    parser = argparse.ArgumentParser("acmix-zoo push", description="Publish a weight folder on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path)
    parser.add_argument("name", help="org/name")
    parser.add_argument("--private", action="store_true", help="if the repository has to be made")
    parser.add_argument("--revision", help="branch; made if it is missing")
    options = parser.parse_args(arguments)
    print(hub.push(options.folder, options.name, private=options.private, revision=options.revision))


def pull(arguments: Sequence[str]) -> None:
    """Fetch a weight folder from the Hub."""
    parser = argparse.ArgumentParser("acmix-zoo pull", description="Fetch a weight folder from the Hugging Face Hub.")
    parser.add_argument("name", help="org/name or org/name@revision")
    parser.add_argument("folder", type=Path, nargs="?", help="where to (default: the repository's name, here)")
    options = parser.parse_args(arguments)
    print(f"{hub.pull(options.name, options.folder)}: verified")


VERBS = {"list": list_, "verify": verify, "convert": convert_, "export": export, "push": push, "pull": pull}
