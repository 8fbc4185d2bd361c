"""Check options, choose the run folder and describe the model before the first training step."""

from __future__ import annotations

import os
import re
import shlex
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only
from torch import nn

from acmix_zoo.data.sources.shipped import SHIPPED
from acmix_zoo.training.export_weights import parent


def check_config(config: Any, subcommand: str) -> None:
    """Refuse options that would make a run fail later with an error that does not mention them.

    Args:
        config: the parsed options of the subcommand.

    Raises:
        ValueError: an option cannot work; the message says what to use instead.
    """
    trainer = config.trainer
    if subcommand == "fit" and trainer.enable_checkpointing is False:
        raise ValueError(
            "--trainer.enable_checkpointing false leaves no checkpoint from which to finish or resume the run. "
            "Leave the option out, or use --trainer.fast_dev_run true for a trial run that writes nothing"
        )
    for name in ("limit_train_batches", "overfit_batches") if subcommand == "fit" else ():
        value = getattr(trainer, name)
        if value is not None and (value < 0 or (value == 0 and name == "limit_train_batches")):
            raise ValueError(
                f"--trainer.{name} {value} leaves nothing to train on. Expected a number of batches (1 or more) or a "
                "fraction of them (0.1)"
            )
    if trainer.accelerator in ("gpu", "cuda") and not (
        torch.cuda.is_available() or (trainer.accelerator == "gpu" and torch.backends.mps.is_available())
    ):
        raise ValueError(
            f"--trainer.accelerator {trainer.accelerator} was given, but torch {torch.__version__} finds no GPU here. "
            "Use --trainer.accelerator cpu (or auto), or check the driver with nvidia-smi and install a build of torch "
            "that supports it"
        )
    if trainer.accelerator == "mps" and not torch.backends.mps.is_available():
        raise ValueError(
            "--trainer.accelerator mps was given, but this is not an Apple computer with Metal support. Use "
            "--trainer.accelerator cpu or auto"
        )


def missing_source(subcommand: str) -> str:
    """Return the error message for a command that was not given any images."""
    return (
        f"{subcommand} needs images, but --data.source is missing. Expected a folder with a subfolder of images for "
        "each class (photos/cat/1.jpg, photos/dog/2.jpg), the id of a data set on the Hugging Face Hub, or the name of "
        "a data set such as fashion_mnist. Add --data.source FOLDER"
    )


def settle_folder(config: Any, command: str) -> None:
    """Fill in the run folder, in place.

    If the config is a run's own config.yaml, the run folder is the folder that contains it, even if that was moved or
    the command is run from another directory. Paths in it are found as `_find_recorded` describes, and a fit resumes
    the run unless --ckpt_path is given. Otherwise, without --run.folder, the folder is named after the recipe (or the
    network) and the data, so that two experiments do not share a folder.

    Args:
        config: the parsed options of the subcommand.
        command: the command line as given.
    """
    recipes = [Path(str(path)) for path in config.get("config") or []]
    given = {word.split("=")[0] for word in shlex.split(command)}
    own = next((path.parent for path in reversed(recipes) if _is_run_config(path)), None)
    if own is not None and "--run.folder" not in given:
        recorded, config.run.folder = config.run.folder, str(own)
        if "--ckpt_path" not in given:
            config.ckpt_path = "last"  # the file always has null, so that it repeats the run in another folder
        for group, name in (("data", "source"), ("data", "classes_file"), ("model", "pretrained"), ("model", "model")):
            value, option = config[group].get(name), f"--{group}.{name}"
            if isinstance(value, str) and value not in SHIPPED and option not in given:
                config[group][name] = _find_recorded(value, recorded, own, option)
    if config.run.folder is None:
        experiment = recipes[0].stem if recipes else Path(str(config.model.model)).name
        data = re.sub(r"[^\w.-]+", "_", Path(str(config.data.source)).name)
        config.run.folder = f"runs/{experiment}-{data}" if data else f"runs/{experiment}"


def absolute_paths(config: Any) -> None:
    """Make the run folder and the places of the data absolute, in place, so that a saved config works from anywhere.

    Args:
        config: the options of the subcommand.
    """
    config.run.folder = os.path.abspath(config.run.folder)
    for name in ("source", "classes_file"):
        value = config.data.get(name)
        if isinstance(value, str) and value not in SHIPPED and Path(value).expanduser().exists():
            config.data[name] = os.path.abspath(os.path.expanduser(value))


def _find_recorded(value: str, recorded: str | None, own: Path, option: str) -> str:
    """Return where a path that is recorded in a run's config.yaml is now. Print a line if it was not where expected.

    The recorded place is used if it exists. It is relative to the directory in which the run was started, if the
    position of the run folder tells which one that was. Otherwise, data that were moved together with the run folder
    are found at the same place relative to it. A relative path is finally looked for in the current directory.

    Args:
        value: the recorded path, or a name, which is returned unchanged.
        recorded: the run folder as recorded.
        own: the run folder now.
        option: the option with this value, for the message.
    """
    if os.path.isabs(value):
        if os.path.exists(value) or not recorded or not os.path.isabs(recorded):
            return value
        moved = os.path.normpath(own.resolve() / os.path.relpath(value, recorded))
        if not os.path.exists(moved):
            return value
        reason = f"{value} does not exist, but was next to the run folder before that was moved"
    else:
        start = _start_of(own, recorded)
        if start and (start / value).exists():
            return str(start / value)
        if not Path(value).exists():
            return value
        moved = os.path.abspath(value)
        reason = f"{own / 'config.yaml'} has the relative path {value}, which is taken from the current directory"
    if is_first_process():
        print(f"Using {option} {moved}: {reason}", flush=True)
    return moved


def _is_run_config(path: Path) -> bool:
    return path.name == "config.yaml" and (path.parent / "checkpoints").is_dir()


def _start_of(folder: Path, recorded: str | None) -> Path | None:
    """Return the directory in which a run was started, given the folder that it recorded. None if the folder's present
    location does not tell."""
    there, parts = folder.resolve(), Path(recorded or "").parts
    if not parts or Path(*parts).is_absolute() or ".." in parts or there.parts[-len(parts) :] != parts:
        return None
    return Path(*there.parts[: -len(parts)])


def is_first_process() -> bool:
    """Return whether this is the run's first process. The launcher's variables tell, since there is no trainer yet."""
    return int(getattr(rank_zero_only, "rank", 0)) == 0


def start_message(trainer: L.Trainer, module: L.LightningModule) -> str:
    """Return one line that describes what is trained: network, pretrained weights, image size and device."""
    model = getattr(module, "model", module)
    hparams, cfg = module.hparams, getattr(model, "pretrained_cfg", None) or {}
    name = hparams.get("model") or type(model).__name__
    count = sum(p.numel() for p in model.parameters()) if isinstance(model, nn.Module) else 0
    start = parent(hparams.get("pretrained"), cfg)
    start = f"fine-tuned from {start}" if start else "trained from scratch"
    size = getattr(getattr(trainer, "datamodule", None), "input_size", None)
    images = f"; images are resized to {size[1]} × {size[2]} pixels" if size else ""
    device: Any = trainer.strategy.root_device
    device = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
    devices = f"{trainer.world_size} × {device}" if trainer.world_size > 1 else device
    return f"model: {name} ({count / 1e6:.3g} M parameters), {start}{images}; device: {devices}, {trainer.precision}"
