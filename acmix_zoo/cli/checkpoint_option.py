"""Find the checkpoint that `--ckpt_path` refers to, for fit, validate, test and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acmix_zoo.training.checkpoints import Checkpoints, is_checkpoint
from acmix_zoo.training.run import RunFolder
from acmix_zoo.weights.locate import HUB_PREFIX, closest_paths, find_run, is_sharded
from acmix_zoo.weights.names import is_network_name
from acmix_zoo.weights.not_found import not_found_error


def find_checkpoint(config: Any, subcommand: str, run: RunFolder, command: str) -> str | None:
    """Return the checkpoint to resume, or to evaluate; None for a new run or the weights of `--model.pretrained`.

    For fit, "last" is not an error in a new run folder. The other commands evaluate the best checkpoint by default.

    Args:
        config: the options of the subcommand.
        subcommand: fit, validate, test or predict.
        run: the run in the chosen folder.
        command: the command line as given.

    Raises:
        FileNotFoundError: the checkpoint does not exist.
        FileExistsError: the folder contains a run, but the command would start a new one.
        ValueError: the checkpoint cannot be read.
    """
    given, is_fit, is_dry_run = config.ckpt_path, subcommand == "fit", bool(config.trainer.fast_dev_run)
    if not is_fit and given == "last" and "--ckpt_path" not in command:
        given = None  # the recipe's `last` is meant for fit
    if given == "last" and is_dry_run:
        return None
    if given == "last" and is_fit:
        newest = run.checkpoints.find_newest()
        return str(newest) if newest else None
    if given in ("last", "best"):
        path = run.last if given == "last" else run.best
        if not path.exists():
            raise FileNotFoundError(
                f"{path} does not exist. Pass the folder of an existing run as --run.folder, or --ckpt_path FILE"
            )
        return str(path)
    if given is not None:
        return str(_find_given(given, is_fit))
    if not is_fit:
        return _find_best(config, subcommand, run, command)
    if run.checkpoints.exist() and not is_dry_run:
        raise FileExistsError(
            f"{run.folder} already contains a run. Resume it with --ckpt_path last, or choose a different --run.folder"
        )
    return None


def _find_given(given: str, is_fit: bool) -> Path:
    """Return the checkpoint that a path refers to. A run folder stands for its newest checkpoint, or for its best one
    if it is evaluated.

    Raises:
        FileNotFoundError: the path does not exist, or the run has no checkpoints.
        ValueError: the path is not a checkpoint.
    """
    path, expected = Path(given), "last, best, a run folder or a checkpoint file"
    run = find_run(path)
    if run is not None and (path.name == "config.yaml" or (path.is_dir() and not is_sharded(path))):
        checkpoints = Checkpoints(run / "checkpoints")
        found = checkpoints.find_newest() if is_fit else checkpoints.best if checkpoints.best.exists() else None
        if found is None:
            raise not_found_error(
                f"--ckpt_path {given}: the run has no {checkpoints.folder / ('last.ckpt' if is_fit else 'best.ckpt')}",
                expected,
                advice="Use --model.pretrained for its weights/",
            )
        return found
    if not path.exists():
        is_name = given.startswith(HUB_PREFIX) or is_network_name(given)
        problem = "is not a checkpoint" if is_name else "does not exist"
        advice = "Use --model.pretrained for weights that are given by name" if is_name else ""
        raise not_found_error(f"--ckpt_path {given} {problem}", expected, closest_paths(path), advice)
    if not is_checkpoint(path):
        raise ValueError(
            f"--ckpt_path {path} is damaged or not a checkpoint of a run. Expected {expected}. Use --model.pretrained "
            "for weight folders, and for files that only contain weights"
        )
    return path


def _find_best(config: Any, subcommand: str, run: RunFolder, command: str) -> str | None:
    """Return the checkpoint to evaluate if none was given: the best, unless pretrained weights are to be used."""
    # Pretrained weights in a recipe are what training starts from. Their classifier may be replaced by a new one.
    if config.model.pretrained and "--model.pretrained" in command:
        return None
    if not run.best.exists():
        advice = "Pass --ckpt_path FILE, the --run.folder of a run, or --model.pretrained"
        if run.last.exists():
            advice = "Finish the run, or pass --ckpt_path last for the weights of its unfinished epoch"
        raise FileNotFoundError(f"`{subcommand}` needs trained weights, but {run.best} does not exist. {advice}")
    return str(run.best)
