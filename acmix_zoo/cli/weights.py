"""The verbs for weights: verify, convert, export, push, pull. See `acmix_zoo.cli`."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.list import shipped, tags
from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import check_folder, hub, official, read_config
from acmix_zoo.weights.convert import convert
from acmix_zoo.weights.locate import locate


def verify(arguments: Sequence[str]) -> bool:
    """Verify weight folders; returns whether all are what they say."""
    parser = Parser(
        "acmix-zoo verify", description="Verify weight folders: record, size, sha256, counts, and logits replayed."
    )
    parser.add_argument(
        "weights", nargs="+", help="weight folders, run folders, or names of shipped, fetched or Hub (org/name) weights"
    )
    parser.add_argument("--data", metavar="SOURCE", help="measure the recorded accuracy again on this source of images")
    options = parser.parse_args(arguments)
    good = True
    for name in options.weights:
        folder = weight_folder(name)
        problems = check_folder(folder)
        if not problems and options.data:
            from acmix_zoo.training.evaluate import compare

            for found in compare(folder, options.data):
                text = f"{found.metric}: {100 * found.measured:.2f} % measured, {100 * found.recorded:.2f} % recorded"
                if found.is_same:
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


def weight_folder(name: str) -> Path:
    """Return the weight folder for a name of weights, or for the path of a weight folder or run folder."""
    place = locate(name)
    if (place / "config.json").is_file():
        return place
    if place.is_file() and (place.suffix == ".ckpt" or place != Path(name)):
        raise ValueError(
            f"{name} is not a weight folder: {place} is a training checkpoint. Export its weights to a folder first: "
            f"acmix-zoo export {name} FOLDER"
        )
    names = [n for n in (name, *(f"{name}.{tag}" for tag in tags(name))) if "." in n]
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
    parser = Parser("acmix-zoo convert", description="Convert a checkpoint file to a weight folder.")
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
    parser = Parser("acmix-zoo export", description="Export a run's weights to a weight folder.")
    parser.add_argument("run", type=Path, help="run folder, or Lightning checkpoint")
    parser.add_argument("folder", type=Path, help="where to")
    parser.add_argument("--no-ema", action="store_true", help="the trained weights, not their moving average")
    options = parser.parse_args(arguments)
    from acmix_zoo.training.export_weights import export_run

    folder = export_run(options.run, options.folder, averaged=not options.no_ema)
    print(f"{folder}: {read_config(folder)['acmix_zoo']['name']}; verified")


def push(arguments: Sequence[str]) -> None:
    """Publish a weight folder on the Hub."""
    parser = Parser("acmix-zoo push", description="Publish a weight folder on the Hugging Face Hub.")
    parser.add_argument("folder", type=Path, help="a weight folder or a run folder")
    parser.add_argument("name", help="org/name")
    parser.add_argument("--private", action="store_true", help="if the repository has to be made")
    parser.add_argument("--revision", help="branch; made if it is missing")
    options = parser.parse_args(arguments)
    print(hub.push(options.folder, options.name, private=options.private, revision=options.revision))


def pull(arguments: Sequence[str]) -> None:
    """Fetch a weight folder from the Hub."""
    parser = Parser("acmix-zoo pull", description="Fetch a weight folder from the Hugging Face Hub.")
    parser.add_argument("name", help="org/name or org/name@revision")
    parser.add_argument("folder", type=Path, nargs="?", help="where to (default: the repository's name, here)")
    options = parser.parse_args(arguments)
    print(f"{hub.pull(options.name, options.folder)}: verified")


VERBS = {"verify": verify, "convert": convert_, "export": export, "push": push, "pull": pull}
