"""A Lightning checkpoint as a weight folder; and what a weight folder says of the run that made it."""

from __future__ import annotations

import os
import re
import shlex
import shutil
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import torch

from acmix_zoo.data.sources.shipped import SHIPPED
from acmix_zoo.tasks.sharded import read_checkpoint
from acmix_zoo.weights import check_folder, create_model, load_weights, read_config, write_folder
from acmix_zoo.weights.fetch import fetch, weight_folder
from acmix_zoo.weights.locate import Kind, locate
from acmix_zoo.weights.replace import check_target, replace_folder, temporary_sibling
from acmix_zoo.weights.resolve import resolve_network
from acmix_zoo.weights.shipped import recipes_root


def run_record(
    run: Mapping[str, Any], card: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """The record of a run's weights.

    Args:
        run: the state of its RunFolder. card: of its ImageDataModule; {} if it had another.
        scores: {split: {metric: value}}; losses are left out.
    """
    dataset = card.get("dataset") or {}
    history = run.get("history", [])
    return {
        "metrics": [
            # float32 scores such as 0.32499998807907104; six digits tell one image in a million
            {"dataset": dataset["name"], "split": split, "name": name, "value": round(value, 6)}
            for split, values in (scores.items() if dataset else ())
            for name, value in values.items()
            if name != "loss"
        ],
        "recipe": portable(run["recipe"]) if run.get("recipe") else None,
        "command": portable_command(run["command"]) if run.get("command") else None,
        "dataset": dataset or None,
        "seed": run.get("seed"),
        "epochs": int(history[-1]["epoch"]) if history else None,
        "steps": int(history[-1]["step"]) if history else None,
        "minutes": float(f"{sum(row['seconds'] for row in history) / 60:.3g}") if history else None,
        # options that were changed on resume: no single command reproduces such a run
        **({"changes": _portable_strings(run["changes"])} if run.get("changes") else {}),
        "license": run.get("license"),
        "origin": "trained here",
    }


def parent(pretrained: bool | str | None, cfg: Mapping[str, Any]) -> str | None:
    """Return the name of the weights that `pretrained` referred to; `cfg` is the network's pretrained_cfg."""
    if pretrained is True:
        return ".".join(str(cfg[key]) for key in ("architecture", "tag") if cfg.get(key)) or None
    if not pretrained:
        return None
    if not os.path.isabs(pretrained):
        return str(pretrained)
    try:  # the name in the weights' record is more informative than the last part of their path
        return str(read_config(fetch(locate(pretrained)))["acmix_zoo"]["name"])
    except (OSError, ValueError, KeyError):
        return portable(pretrained)


def portable(path: str) -> str:
    """Return a path in the form that a public record may show, without the folders of this machine.

    Shipped recipes are named as in a clone (`recipes/...`). Other absolute paths become relative to the working
    directory if they are below it; otherwise only their last part is kept. Relative paths are unchanged.
    """
    if not os.path.isabs(path):
        return path
    root = recipes_root()
    if root and Path(path).resolve().is_relative_to(root):
        return (Path(root.name) / Path(path).resolve().relative_to(root)).as_posix()
    here = Path.cwd()
    if here != Path(here.anchor):  # in containers, which start in the root folder, every path is below it
        with suppress(ValueError):
            return Path(path).relative_to(here).as_posix()
    return Path(path).name


def portable_command(command: str) -> str:
    """Return a command line with `portable` paths, including those in lists and mappings.

    A path given as --data.source still reads as a path: `/data/fashion_mnist` becomes `./fashion_mnist`, because the
    bare name is another data set, and `org/name` would be one of the Hub.
    """
    words: list[str] = []
    for word in shlex.split(command):
        option, equals, value = word.partition("=") if word.startswith("-") else ("", "", word)
        text = _portable_text(value)
        is_source = "--data.source" in (option, words[-1] if words and not option else "")
        if is_source and os.path.isabs(value) and (text in SHIPPED or text.count("/") == 1):
            text = f"./{text}"
        words.append(option + equals + text)
    return shlex.join(words)


def _portable_text(value: str) -> str:
    """Return the text of an option's value with `portable` paths; a `file://` address becomes the path it means."""
    return portable(value) if os.path.isabs(value) else _INNER_PATH.sub(lambda m: portable(m[1]), value)


def _portable_strings(value: Any) -> Any:
    """Return plain values, nested in lists and mappings, with every string as `_portable_text` gives it."""
    if isinstance(value, str):
        return _portable_text(value)
    if isinstance(value, Mapping):
        return {key: _portable_strings(item) for key, item in value.items()}
    return [_portable_strings(item) for item in value] if isinstance(value, list | tuple) else value


# An absolute path inside a value such as [/data/a, /data/b], {"save_dir": "/logs"}, name:/data/a or file:///data/a; not
# the slashes of other addresses.
_INNER_PATH = re.compile(r"""(?:\bfile://[^\s/]*|(?<=[\s\[{(,'"=:]))(/(?!/)[^\s\[\]{}(),'"]+)""")


def run_cfg(run: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """timm's pretrained_cfg of a run's weights, as far as the run and its data say."""
    named = card.get("dataset", {}).get("name", "").rpartition("/")[2].replace("-", "_")
    return {"tag": run.get("tag") or named or None, **card.get("cfg", {})}


def validation_scores(row: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """The scores of one epoch's row of the history."""
    return {"val": {name[4:]: value for name, value in row.items() if name.startswith("val/")}}


def evaluation_limits(trainer: Any) -> dict[str, Any]:
    """Return the options of a trainer that can leave out images of an evaluation, for `is_whole`."""
    names = ("limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")
    return {f"trainer.{name}": getattr(trainer, name, None) for name in names}


def is_whole(options: Mapping[str, Any], split: str) -> bool:
    """Return whether every image of a split is evaluated, without which its scores are not recorded.

    Args:
        options: {"trainer.<argument>": value} of a run; a missing one has Lightning's default.
        split: "val" or "test".
    """
    limit = options.get(f"trainer.limit_{split}_batches")
    if options.get("trainer.overfit_batches") or options.get("trainer.fast_dev_run"):
        return False
    return limit is None or (isinstance(limit, float) and limit == 1.0)  # the int 1 is a single batch


def export_run(source: str | Path, folder: str | Path, averaged: bool = True) -> Path:
    """Write a run's or a checkpoint's weights as a weight folder.

    Args:
        source: a run folder (its weights/ if the run has finished, otherwise its best checkpoint), or a Lightning
            checkpoint of a ClassificationTask, which may be a folder with the parts of several processes. A weight
            folder, or the name of one, is copied.
        folder: where to write. An existing weight folder is replaced once the new one verifies.
        averaged: the moving average of the weights, which is what was evaluated, if the run kept one. False for the
            trained weights themselves; they were not evaluated, so no scores are stated for them. Nor are scores of a
            part of the validation split, as of a run with `--trainer.limit_val_batches`.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: no such run or checkpoint. ValueError: not a checkpoint of ours, or it has no average.
    """
    target, located = check_target(folder), locate(source, prefers_paths=True)
    is_checkpoint = located.kind in (Kind.CHECKPOINT, Kind.SHARDED_CHECKPOINT)
    if averaged and not is_checkpoint:
        finished = weight_folder(source)
        if located.run is None or not check_folder(finished):
            with temporary_sibling(target) as new:
                shutil.copytree(finished, new, dirs_exist_ok=True)
                replace_folder(target, new)
            return target
    path = located.path if is_checkpoint else located.run and located.run / "checkpoints" / "best.ckpt"
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"export: {source} has no checkpoint with the trained weights. Expected a run folder with "
            "checkpoints/best.ckpt, or a checkpoint file"
        )
    checkpoint = _read(path)
    h, run = checkpoint["hyper_parameters"], checkpoint.get("callbacks", {}).get("RunFolder", {})
    card = checkpoint.get("ImageDataModule", {}).get("card", {})
    state, row = checkpoint["state_dict"], (run.get("history") or [{}])[-1]
    if not averaged:
        if "current_model_state" not in checkpoint:
            raise ValueError(f"export: {path} has no averaged weights, only the trained ones; leave --no-ema out")
        state, row = checkpoint["current_model_state"], {}
    # a checkpoint of 0.1.0 lacks the arguments of the weight folder that it was trained from
    architecture, start, arguments = resolve_network(
        h["model"], h.get("pretrained") or False, h.get("model_kwargs"), is_new=False
    )
    model = create_model(architecture, num_classes=h["num_classes"], **arguments or {})
    load_weights(model, {key: value for key, value in state.items() if key.startswith("model.")})
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    limits = run.get("limits") or run.get("options") or {}  # older checkpoints have the options alone
    record = run_record(run, card, validation_scores(row) if is_whole(limits, "val") else {})
    size = card.get("cfg", {}).get("input_size") or cfg["input_size"]
    return write_folder(
        target,
        model,
        architecture=cfg.get("architecture") or architecture,
        pretrained_cfg=run_cfg(run, card),
        record={**record, "parent": parent(start, cfg)},
        example=torch.randn(1, *size, generator=torch.Generator().manual_seed(0)),
    )


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint = read_checkpoint(path)
    except Exception as error:  # damaged pickles raise nearly everything
        raise ValueError(f"export: {path} is damaged or holds more than tensors and plain values ({error})") from error
    hyper = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if "state_dict" not in checkpoint or not {"model", "num_classes"} <= hyper.keys():
        raise ValueError(
            f"export: {path} is not a Lightning checkpoint of a ClassificationTask; "
            "for other files: acmix-zoo convert FILE --model NAME"
        )
    return checkpoint
