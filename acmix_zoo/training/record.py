"""The record of a run in the weight folder that it produced."""

from __future__ import annotations

import os
from collections.abc import Mapping
from typing import Any

import timm

from acmix_zoo.models.task_kinds import CLASSIFICATION, TaskKind
from acmix_zoo.training.portable import portable_command, portable_path, portable_strings
from acmix_zoo.weights import read_config
from acmix_zoo.weights.fetch import fetch
from acmix_zoo.weights.locate import locate
from acmix_zoo.weights.names import is_network_name
from acmix_zoo.weights.shipped import shipped_task_networks


def run_record(
    run: Mapping[str, Any], card: Mapping[str, Any], scores: Mapping[str, Mapping[str, float]]
) -> dict[str, Any]:
    """Return the record of a run's weights.

    Args:
        run: the state of its RunFolder.
        card: the card of its data module; {} for other data.
        scores: {split: {metric: value}} of `split_scores`.
    """
    dataset = card.get("dataset") or {}
    history = run.get("history", [])
    return {
        "metrics": [
            # round float32 scores such as 0.32499998807907104; six digits resolve one image in a million
            {"dataset": dataset["name"], "split": split, "name": name, "value": round(value, 6)}
            for split, values in (scores.items() if dataset else ())
            for name, value in values.items()
        ],
        "recipe": portable_path(run["recipe"]) if run.get("recipe") else None,
        "command": portable_command(run["command"]) if run.get("command") else None,
        "dataset": dataset or None,
        "seed": run.get("seed"),
        "epochs": int(history[-1]["epoch"]) if history else None,
        "steps": int(history[-1]["step"]) if history else None,
        "minutes": float(f"{sum(row['seconds'] for row in history) / 60:.3g}") if history else None,
        # options that were changed on resume: no single command reproduces such a run
        **({"changes": portable_strings(run["changes"])} if run.get("changes") else {}),
        "license": run.get("license"),
        "origin": "trained here",
    }


def task_of(module: Any) -> TaskKind:
    """Return the task of a LightningModule. Modules of other programs are treated as classifiers."""
    task: TaskKind = getattr(module, "kind", CLASSIFICATION)
    return task


def parent_record(run: Mapping[str, Any], pretrained: bool | str | None, cfg: Mapping[str, Any]) -> dict[str, Any]:
    """Return the record's entries about the weights that a run started from.

    Args:
        run: the state of its RunFolder. It has these entries, unless the run had not started.
        pretrained: what the run started from.
        cfg: the network's pretrained_cfg.
    """
    known: dict[str, Any] | None = run.get("parent")
    return known or {"parent": parent_name(pretrained, cfg), "parent_license": parent_license(pretrained, cfg)}


def parent_name(pretrained: bool | str | None, cfg: Mapping[str, Any]) -> str | None:
    """Return the name of the weights that `pretrained` referred to; `cfg` is the network's pretrained_cfg."""
    if not pretrained:
        return None
    if _is_tag(pretrained, cfg):
        cfg = _cfg_of_tag(pretrained, cfg)
        return ".".join(str(cfg[key]) for key in ("architecture", "tag") if cfg.get(key)) or None
    source = str(pretrained)
    if not os.path.isabs(source):
        return source
    try:  # the name in the weights' record is more informative than the last part of their path
        return str(read_config(fetch(locate(source)))["acmix_zoo"]["name"])
    except (OSError, ValueError, KeyError):
        return portable_path(source)


def parent_license(pretrained: bool | str | None, cfg: Mapping[str, Any]) -> str | None:
    """Return the licence of the weights that `pretrained` referred to, or None if none is known."""
    if not pretrained:
        return None
    source = str(pretrained)
    is_local = os.path.exists(source) or source in shipped_task_networks()
    if _is_tag(pretrained, cfg):
        return _cfg_of_tag(pretrained, cfg).get("license")
    if not is_local:  # the pretrained_cfg of a network from the Hub has the licence
        return cfg.get("license")
    try:
        license: str | None = read_config(fetch(locate(source)))["acmix_zoo"]["license"]
    except (OSError, ValueError, KeyError):
        return None
    return license


def _is_tag(pretrained: bool | str, cfg: Mapping[str, Any]) -> bool:
    """Return whether `pretrained` is a tag of the network, or True for the default one."""
    return pretrained is True or is_network_name(f"{cfg.get('architecture')}.{pretrained}")


def _cfg_of_tag(tag: bool | str, cfg: Mapping[str, Any]) -> Mapping[str, Any]:
    """Return the pretrained_cfg of a network's tag. That of a network without these weights is its default tag's."""
    if tag is True or tag == cfg.get("tag"):
        return cfg
    found = timm.models.get_pretrained_cfg(f"{cfg['architecture']}.{tag}")
    return found.to_dict() if found else {}


def run_cfg(run: Mapping[str, Any], card: Mapping[str, Any]) -> dict[str, Any]:
    """Return timm's pretrained_cfg of a run's weights, as far as the run and its data state it."""
    data_name = card.get("dataset", {}).get("name", "").rpartition("/")[2].replace("-", "_")
    return {"tag": run.get("tag") or data_name or None, **card.get("cfg", {})}


def split_scores(split: str, logged: Mapping[str, float], task: TaskKind) -> dict[str, dict[str, float]]:
    """Return the scores of a split for the record, {split: {metric: value}}.

    Losses, and what callbacks log under the same prefix, are left out.

    Args:
        split: "val" or "test".
        logged: {"split/metric": value}, such as a row of the history.
    """
    names = (*task.metrics, *task.other_metrics)
    values = {name.removeprefix(f"{split}/"): value for name, value in logged.items() if name.startswith(f"{split}/")}
    return {split: {name: value for name, value in values.items() if name in names}}


def evaluation_limits(trainer: Any) -> dict[str, Any]:
    """Return the options of a trainer that can leave out images of an evaluation, for `is_complete`."""
    names = ("limit_val_batches", "limit_test_batches", "overfit_batches", "fast_dev_run")
    return {f"trainer.{name}": getattr(trainer, name, None) for name in names}


def is_complete(options: Mapping[str, Any], split: str) -> bool:
    """Return whether every image of a split is evaluated. Scores on part of a split are not recorded.

    Args:
        options: {"trainer.<argument>": value} of a run; missing ones have Lightning's defaults.
        split: "val" or "test".
    """
    limit = options.get(f"trainer.limit_{split}_batches")
    if options.get("trainer.overfit_batches") or options.get("trainer.fast_dev_run"):
        return False
    return limit is None or (isinstance(limit, float) and limit == 1.0)  # the int 1 is a single batch


def partial_score_warning(trainer: Any, split: str) -> str:
    """Return a line which says that a trainer evaluated only part of a split, or "" if it evaluated all images."""
    if is_complete(evaluation_limits(trainer), split):
        return ""
    limit = getattr(trainer, f"limit_{split}_batches")
    return (
        f"Warning: this is the score of part of the images (trainer.limit_{split}_batches is {limit}). For all of "
        f"them, use --trainer.limit_{split}_batches 1.0 without --trainer.overfit_batches and --trainer.fast_dev_run"
    )
