"""Export the weights of a run or a Lightning checkpoint as a weight folder."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from acmix_zoo.models.task_kinds import config_task
from acmix_zoo.models.task_network import builder_options
from acmix_zoo.tasks.sharded import read_checkpoint
from acmix_zoo.tasks.task_classes import task_classes
from acmix_zoo.training.record import is_complete, parent_record, run_cfg, run_record, split_scores
from acmix_zoo.weights import check_folder, load_weights, write_folder
from acmix_zoo.weights.create import create_task_network
from acmix_zoo.weights.fetch import weight_folder
from acmix_zoo.weights.locate import Kind, locate
from acmix_zoo.weights.replace import check_target, copy_weights_folder, replace_folder, temporary_sibling
from acmix_zoo.weights.resolve import data_card, resolve_network


def export_run(source: str | Path, folder: str | Path, averaged: bool = True) -> Path:
    """Write the weights of a run or a checkpoint as a weight folder.

    Scores are only recorded if the exported weights were evaluated on the complete validation split.

    Args:
        source: a run folder, of which weights/ is exported if the run is finished and else the best checkpoint; or a
            Lightning checkpoint of a task, which may be a folder of shards from several processes. A
            weight folder, or the name of one, is copied.
        folder: output folder. A weight folder in its place is replaced once the new one verifies.
        averaged: whether to export the moving average of the weights, if the run has one. False exports the trained
            weights, which have not been evaluated.

    Returns:
        The folder.

    Raises:
        FileNotFoundError: the run or checkpoint does not exist.
        ValueError: this is not a checkpoint of a task, or it has no averaged weights.
    """
    target, location = check_target(folder), locate(source, prefers_paths=True)
    is_checkpoint = location.kind in (Kind.CHECKPOINT, Kind.SHARDED_CHECKPOINT)
    if averaged and not is_checkpoint:
        finished = weight_folder(source)
        if location.run is None or not check_folder(finished):
            with temporary_sibling(target) as new:
                copy_weights_folder(finished, new)
                replace_folder(target, new)
            return target
    path = location.path if is_checkpoint else location.run and location.run / "checkpoints" / "best.ckpt"
    if path is None or not path.exists():
        raise FileNotFoundError(
            f"export: {source} has no checkpoint with the trained weights. Expected a run folder with "
            "checkpoints/best.ckpt, or a checkpoint file"
        )
    checkpoint = _read(path)
    hparams, run = checkpoint["hyper_parameters"], checkpoint.get("callbacks", {}).get("RunFolder", {})
    card, task = data_card(checkpoint), config_task(checkpoint)
    state, steps = checkpoint["state_dict"], int(checkpoint.get("global_step", 0))
    row = (run.get("history") or [{}])[-1]
    if row.get("step") != steps:  # saved within an epoch: the scores are those of older weights
        row = {}
    if not averaged:
        if "current_model_state" not in checkpoint:
            raise ValueError(f"export: {path} has no averaged weights, only the trained ones. Leave out --no-ema")
        state, row = checkpoint["current_model_state"], {}
    architecture, start, arguments = resolve_network(
        hparams["model"], hparams.get("pretrained") or False, hparams.get("model_kwargs"), is_new=False
    )
    model = create_task_network(
        task,
        architecture,
        num_classes=hparams["num_classes"],
        model_kwargs=arguments,
        options={name: hparams[name] for name in builder_options(task)},
    )
    load_weights(model, {key: value for key, value in state.items() if key.startswith("model.")})
    cfg: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    is_val_complete = is_complete(run.get("limits") or {}, "val")
    record = run_record(run, card, split_scores("val", row, task) if is_val_complete else {})
    size = card.get("cfg", {}).get("input_size") or cfg["input_size"]
    return write_folder(
        target,
        model,
        architecture=cfg.get("architecture") or architecture,
        pretrained_cfg=run_cfg(run, card),
        record={
            **record,
            "steps": steps,
            **parent_record(run, start, cfg),
            "evaluation": task_classes(task.name).task.evaluation_options(hparams) or None,
        },
        example=torch.randn(1, *size, generator=torch.Generator().manual_seed(0)),
    )


def _read(path: Path) -> dict[str, Any]:
    """Read a checkpoint of a task."""
    try:
        checkpoint = read_checkpoint(path)
    except Exception as error:  # damaged pickles raise almost any exception
        raise ValueError(
            f"export: {path} is damaged or contains more than tensors and plain values ({error})"
        ) from error
    hparams = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else {}
    if "state_dict" not in checkpoint or not {"model", "num_classes"} <= hparams.keys():
        raise ValueError(
            f"export: {path} is not a Lightning checkpoint of a task of acmix_zoo. For other files, run "
            "acmix-zoo convert FILE --model NAME"
        )
    return checkpoint
