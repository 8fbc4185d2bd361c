"""What `--ckpt_path` means for fit, validate, test and predict."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from acmix_zoo.training.checkpoints import is_checkpoint
from acmix_zoo.training.run import RunFolder


def find_checkpoint(config: Any, subcommand: str, run: RunFolder, command: str) -> str | None:
    """Return the checkpoint to resume, or to evaluate; None for a new run or the weights of `--model.pretrained`.

    A fit takes "last", which is no error in a new run folder. Other commands evaluate the best checkpoint by default.

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
        given = None  # a recipe's `last` is meant for its fit
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
        _check_file(given)
        return str(given)
    if not is_fit:
        return _find_best(config, subcommand, run, command)
    if run.checkpoints.exist() and not is_dry_run:
        raise FileExistsError(
            f"{run.folder} already contains a run. Resume it with --ckpt_path last, or choose another --run.folder"
        )
    return None


def _check_file(path: str) -> None:
    if not Path(path).exists():
        raise FileNotFoundError(f"--ckpt_path {path} does not exist; expected last, best or a checkpoint file")
    if not is_checkpoint(Path(path)):
        raise ValueError(
            f"--ckpt_path {path} is damaged or not a checkpoint of a run. Expected a file in the checkpoints/ of a run "
            "folder. Use --model.pretrained for files that only contain weights"
        )


def _find_best(config: Any, subcommand: str, run: RunFolder, command: str) -> str | None:
    """Return the checkpoint to evaluate if none was given: the best, unless pretrained weights are to be used."""
    if config.model.pretrained and ("--model.pretrained" in command or not run.best.exists()):
        return None
    if not run.best.exists():
        raise FileNotFoundError(
            f"there are no weights to {subcommand}: {run.best} does not exist. Pass --ckpt_path FILE, the --run.folder "
            "of a run, or --model.pretrained"
        )
    return str(run.best)
