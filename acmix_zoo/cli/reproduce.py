"""The verb `reproduce`: train again what a weight's record says, and compare with the record. See `acmix_zoo.cli`."""

from __future__ import annotations

import math
import os
import shlex
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from acmix_zoo.cli.fit import run_trainer
from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.weights import weight_folder
from acmix_zoo.models.published import published
from acmix_zoo.tasks.hyperparameters import RENAMED
from acmix_zoo.weights import read_config
from acmix_zoo.weights.shipped import checkpoints_root, find_recipe, recipes_root, suggest_recipes

Record = Mapping[str, Any]
Train = Callable[[list[str], Callable[[Any], None]], Any]  # arguments from `fit` on, and what to do before it; the CLI

# Of a recorded command: where it went and what it went on from is this run's affair.
OWN = ("--run.folder", "--run.push_to", "--ckpt_path")


# Records of earlier versions have the former names.
_RENAMED_OPTIONS = {f"--model.{old}": f"--model.{new}" for old, new in RENAMED.items()}


class Target(NamedTuple):
    """What is to be reproduced: arguments of `fit`, and the record to compare with, {} if there is none."""

    name: str
    arguments: list[str]
    record: Record


def reproduce(arguments: Sequence[str], train: Train = run_trainer) -> bool:
    """Start, or go on with, the training behind a weight; when it ends, compare.

    Args:
        arguments: NAME and further ones, most of them for `fit`.
        train: `acmix_zoo.cli`'s, which needs the training libraries.

    Returns:
        Whether every recorded metric was reached within its tolerance.

    Raises:
        FileNotFoundError: neither a weight nor a recipe of that name, or a recipe that the record names is not here.
        ValueError: the record does not say how the weights were trained.
    """
    parser = Parser(
        "acmix-zoo reproduce",
        usage="acmix-zoo reproduce NAME [--run.folder FOLDER] [--tolerance POINTS] [options of fit ...]",
        description="Train again what the record of a weight says, and compare. The same command goes on with a run "
        "that was interrupted, and only compares one that is finished.",
    )
    parser.add_argument("name", help="shipped weights, a weight folder, org/name of the Hub, or a recipe")
    parser.add_argument("--run.folder", dest="folder", type=Path, help="where to (default: runs/reproduce/NAME)")
    parser.add_argument("--tolerance", type=float, metavar="POINTS", help="in per cent (default: three binomial "
                        "standard errors of a split of that size)")  # fmt: skip
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        parser.error(f"NAME comes first, then options such as {arguments[0]}")
    options, more = parser.parse_known_args(arguments)
    target = find_target(options.name)
    folder = options.folder or Path("runs/reproduce") / target.name
    done = folder / "weights"
    if (done / "config.json").is_file():
        print(f"{folder} holds a finished run, which is compared; for a new one choose another --run.folder")
    else:
        given = [*target.arguments, *more]
        if changed := _changes(target.record):
            print(
                f"CHANGED WHEN RESUMED: the recorded run went on with other options ({changed}), so that one command "
                "does not repeat it bit for bit",
                flush=True,
            )
        _train_parents(given, more, train)
        print(f"Training {target.name} again in {folder}", flush=True)
        cli = train(["fit", *given, "--run.folder", str(folder), "--ckpt_path", "last"], _check_data(target.record))
        if not cli.trainer.is_global_zero or not (done / "config.json").is_file():  # a rehearsal leaves no weights
            return True
    return compare(target, read_config(done)["acmix_zoo"], options.tolerance)


# ---- what a name means


def find_target(name: str) -> Target:
    """
    Raises:
        FileNotFoundError, ValueError: as `reproduce`.
    """
    recipe = find_recipe(name)
    if recipe and ("/" in name or name.endswith(".yaml")):  # not: org/name
        return _of_recipe(recipe)
    try:
        folder = weight_folder(name)
        record = read_config(folder).get("acmix_zoo", {})
    except FileNotFoundError:
        if recipe:
            return _of_recipe(recipe)
        raise FileNotFoundError(
            f"{name} is neither weights that are here (`acmix-zoo list --pretrained`), nor a weight folder, nor a "
            f"recipe; {suggest_recipes(name)}"
        ) from None
    if record.get("command") or record.get("recipe"):
        own = folder.parent / "config.yaml"  # of the run, if the folder is still inside it
        is_own = folder.name == "weights" and own.is_file()
        return Target(record["name"], recorded_arguments(record, own if is_own else None), record)
    if recipe:
        return _of_recipe(recipe)
    raise ValueError(
        f"{name}: its record names neither a command nor a recipe (origin: {record.get('origin', 'unknown')}); "
        "give the name of a recipe"
    )


def _of_recipe(recipe: Path) -> Target:
    """Its record is that of a shipped weight it made, else the published score."""
    arguments = ["--config", str(recipe)]
    place = f"recipes/{recipe.parent.name}/{recipe.name}"
    root = checkpoints_root()
    for config in sorted(root.glob("*/config.json")) if root else []:
        record = read_config(config.parent)["acmix_zoo"]
        if record.get("recipe") == place:
            return Target(record["name"], recorded_arguments(record), record)
    top1 = published(recipe.stem).top1  # a modern recipe's name is no network's
    if recipe.parent.name != "imagenet1k" or not top1:
        return Target(recipe.stem, arguments, {})
    score = {"split": "val", "name": "top1", "value": float(top1) / 100}
    record = {"metrics": [score], "rounding": 5e-4, "dataset": {"splits": {"val": 50_000}}}
    return Target(recipe.stem, arguments, record)


def recorded_arguments(record: Record, config: Path | None = None) -> list[str]:
    """Return the arguments of `fit` from a record's command, with the seed and the present paths of the recipes.

    For files outside the run's working directory, a record contains only the last part of the path, which another file
    may share. The run's own `config`, which stays on the machine, has the full paths. It is used instead of a recipe
    that is not shipped.

    Raises:
        FileNotFoundError: a recipe of the command is not here.
    """
    words = shlex.split(record.get("command") or "")
    own = words[2:] if words[:2] == ["acmix-zoo", "fit"] else ["--config", str(record["recipe"])]
    settings = _settings(config) if config else {}
    kept: list[str] = []
    for name, *values in _options(own):
        name = _RENAMED_OPTIONS.get(name, name)
        if name in OWN:
            continue
        if name == "--config":
            recipe = _recorded_recipe(values[0], config)
            if recipe is None:
                raise FileNotFoundError(
                    f"the record of {record['name']} names {values[0]}, which is neither here nor a shipped recipe "
                    "(recipes/...); run this in the folder where that file is, or give the run folder while it exists"
                )
            values = [str(recipe)]
            if recipe == config and _setting(settings, "--run.push_to"):
                values += ["--run.push_to", "null"]  # as with OWN
        elif values and _is_path(place := _setting(settings, name)) and Path(place).name == Path(values[0]).name:
            values = [place]
        kept += [name, *values]
    return kept + (["--seed_everything", str(record["seed"])] if record.get("seed") is not None else [])


def _recorded_recipe(name: str, config: Path | None) -> Path | None:
    """Return the file behind a recipe of a recorded command, whose own `config` is given if it is there."""
    root = recipes_root()
    if root and name.startswith("recipes/") and (root.parent / name).is_file():
        return find_recipe(name)
    if config:
        return config
    return Path(name) if Path(name).is_file() else None


def _is_path(value: str) -> bool:
    return os.path.isabs(value.removeprefix("file://"))


def _settings(path: str | Path) -> dict[str, Any]:
    """Return a recipe as a dict."""
    import yaml  # type: ignore[import-untyped]

    loaded = yaml.safe_load(Path(path).read_text(encoding="utf-8"))
    return loaded if isinstance(loaded, dict) else {}


def _setting(settings: Mapping[str, Any], option: str) -> str:
    """Return a recipe's value for `--some.option` as text, or "" if it has none."""
    found: Any = settings
    for key in option.removeprefix("--").split("."):
        found = found.get(key) if isinstance(found, dict) else None
    return found if isinstance(found, str) else ""


def _options(words: Sequence[str]) -> list[list[str]]:
    """["--a=1", "--b", "2"] → [["--a", "1"], ["--b", "2"]]."""
    groups: list[list[str]] = []
    for word in words:
        if word.startswith("--"):
            groups.append(word.split("=", 1))
        elif word == "-c":
            groups.append(["--config"])
        elif groups:
            groups[-1].append(word)
    return groups


# ---- what comes before


def _train_parents(arguments: Sequence[str], more: Sequence[str], train: Train) -> None:
    """Run the recipe whose weights the training starts from, if they are missing; it takes the user's data, machine
    and overlays, nothing else of the command."""
    start: Any = None
    beside: list[Path] = []
    for name, *values in _options(arguments):
        if name == "--config" and Path(values[0]).is_file():
            start = (_settings(values[0]).get("model") or {}).get("pretrained", start)
            beside += sorted(Path(values[0]).parent.glob("*.yaml"))
        elif name == "--model.pretrained":
            start = values[0]
    if not isinstance(start, str) or (Path(start) / "config.json").is_file():
        return
    for recipe in beside:
        place = (_settings(recipe).get("run") or {}).get("folder")
        if place and Path(place) / "weights" == Path(start):
            shared = [w for w in _options(more) if w[0] == "--config" or w[0].startswith(("--data.", "--trainer."))]
            given = ["--config", str(recipe), *(word for words in shared for word in words)]
            _train_parents(given, more, train)
            print(f"First {recipe}, whose weights it starts from ({start})", flush=True)
            train(["fit", *given, "--ckpt_path", "last"], lambda cli: None)
            return


def _check_data(record: Record) -> Callable[[Any], None]:
    """What to do before the first step: say if the images are not those of the record."""
    recorded = (record.get("dataset") or {}).get("fingerprint")

    def check(cli: Any) -> None:
        found = cli.datamodule.card()["dataset"] if recorded else {}
        if found and found["fingerprint"] != recorded and cli.trainer.is_global_zero:
            print(
                f"OTHER DATA: {found['name']} has fingerprint {found['fingerprint']}, the record is of "
                f"{record['dataset']['name']} with {recorded}; the scores may differ for that alone",
                flush=True,
            )

    return check


# ---- the comparison


def tolerance(share: float, images: int) -> float:
    """Three binomial standard errors of a share of so many images.

    Two trainings that differ by chance alone (the order of sums, another machine) get different images wrong; scores
    further apart than this do not come from such chance. One image more right and one more wrong are added (Laplace),
    so that a perfect score has an error, too.
    """
    p = (share * images + 1) / (images + 2)
    return 3 * math.sqrt(p * (1 - p) / images)


def compare(target: Target, made: Record, points: float | None = None) -> bool:
    """Print recorded and reproduced metrics side by side; whether all are within `points` per cent (None: within
    `tolerance`)."""
    scores = {(m["split"], m["name"]): m["value"] for m in made["metrics"]}
    rows, good = [("", "recorded", "reproduced", "difference", "tolerance", "")], True
    for metric in target.record.get("metrics", []):
        split, name, value = metric["split"], metric["name"], metric["value"]
        size = ((target.record.get("dataset") or {}).get("splits") or {}).get(split) or 1
        room = points / 100 if points is not None else tolerance(value, size) + target.record.get("rounding", 0.0)
        found = scores.get((split, name))
        within = found is not None and abs(found - value) <= room
        shown = ("-", "-") if found is None else (f"{100 * found:.2f} %", f"{100 * (found - value):+.2f}")
        verdict = "within" if within else "NOT REPRODUCED" if found is not None else "NOT MEASURED"
        rows.append((f"{split} {name}", f"{100 * value:.2f} %", *shown, f"±{100 * room:.2f}", verdict))
        good = good and within
    if len(rows) == 1:
        text = ", ".join(f"{split} {name} {100 * value:.2f} %" for (split, name), value in scores.items())
        print(f"{target.name}: {text}; there is no record to compare it with")
        return True
    for row in rows:
        widths = (14, 10, 12, 12, 11, 0)
        print("".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
    print(f"{target.name}: {'reproduced' if good else 'NOT REPRODUCED'}{_bitwise(target.record, made)}")
    return good


def _bitwise(record: Record, made: Record) -> str:
    """Whether the weights are the same to the bit, and if not, what else is not the same."""
    if "sha256" not in record:
        return ""
    if record["sha256"] == made["sha256"]:
        return f", bitwise equal: sha256 {made['sha256'][:12]}…"
    old, new = _circumstances(record), _circumstances(made)
    names = sorted(key for key in old.keys() | new.keys() if old.get(key) != new.get(key))
    pairs = [["none" if side.get(key) is None else side[key] for side in (old, new)] for key in names]
    differs = "; ".join(f"{key} ({a} in the record, {b} here)" for key, (a, b) in zip(names, pairs, strict=True))
    return f", not bitwise equal. What differs: {differs or 'nothing that is recorded'}"


def _changes(record: Record) -> str | None:
    """Return what was changed when a run was resumed, in a few words."""
    found = [
        f"{name} from {old} to {new} after step {change['step']}"
        for change in record.get("changes") or ()
        for name, (old, new) in change["options"].items()
    ]
    return ", ".join(found) or None


def _circumstances(record: Record) -> dict[str, Any]:
    """All that the weights may depend on and that a record has: environment, code, data, options of the command."""
    options = _options(shlex.split(record.get("command") or "")[2:])
    return {
        **record.get("environment", {}),
        **{key: record.get(key) for key in ("version", "git_revision", "seed")},
        "data": (record.get("dataset") or {}).get("fingerprint"),
        "changes at a resume": _changes(record),
        **{name: " ".join(values) for name, *values in options if name not in (*OWN, "--config", "--seed_everything")},
    }
