"""`acmix-zoo fit --run.find_lr true`: suggest a learning rate, and print the command that trains with it."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

from acmix_zoo.cli.recorded_command import split_options
from acmix_zoo.data.sources.find_images import LEARNING_RATE_PLOT
from acmix_zoo.training.learning_rate_finder import HIGHEST, LOWEST, STEPS, find_learning_rate
from acmix_zoo.training.plots import plot_learning_rates
from acmix_zoo.weights.recipe_files import recipes_root

_REPLACED = ("--run.find_lr", "--model.lr")


def check_find_lr(config: Any) -> None:
    """Check that a command that looks for a learning rate starts a new run.

    Args:
        config: the options of `fit`, after its checkpoint has been looked for.

    Raises:
        ValueError: the command resumes a run, or is a dry run.
    """
    if config.run.find_lr and config.ckpt_path:
        raise ValueError(
            f"--run.find_lr needs a new run, but this command resumes {config.ckpt_path}, and the learning rate of a "
            "run cannot change. Choose a different --run.folder, or leave out --run.find_lr to resume"
        )
    if config.run.find_lr and config.trainer.fast_dev_run:
        raise ValueError(
            f"--run.find_lr takes {STEPS} steps, but --trainer.fast_dev_run only a few. Expected one of the two. Leave "
            "out --trainer.fast_dev_run"
        )


def suggest_learning_rate(cli: Any) -> None:
    """Try learning rates, write the plot learning_rate.png to the run folder, and print a suggestion.

    Args:
        cli: the `TrainingCLI` of a fit, with everything built.

    Raises:
        ValueError: the loss did not fall at any rate, or is not finite.
        OSError: the plot cannot be written.
    """
    trainer, task, folder = cli.trainer, cli.model, Path(cli.run.folder)
    if trainer.is_global_zero:
        print(f"Trying learning rates from {LOWEST:g} to {HIGHEST:g} in up to {STEPS} steps …", flush=True)
    tried = find_learning_rate(trainer, task, cli.datamodule)
    suggested, current = tried.suggest(), float(task.hparams["lr"])
    path = folder / LEARNING_RATE_PLOT
    if trainer.is_global_zero:
        folder.mkdir(parents=True, exist_ok=True)
        plot_learning_rates(tried.rates, tried.losses, tried.smooth_losses(), path, current, suggested)
    if suggested is None:
        raise ValueError(
            f"no learning rate from {LOWEST:g} to {tried.rates[-1]:g} made the loss fall clearly in {len(tried.rates)} "
            f"steps. The losses are in {path}. Keep --model.lr {current:g}, or try again with a larger "
            "--data.batch_size, which makes the loss less noisy"
        )
    if trainer.is_global_zero:
        print(f"Suggested learning rate: {suggested:.2g} (now {current:g}). The losses are in {path}")
        print(f"Nothing was trained. To train with it:\n  {with_learning_rate(cli.command, suggested)}", flush=True)


def with_learning_rate(command: str, rate: float) -> str:
    """Return a `fit` command that trains with a learning rate in place of looking for one."""
    program, subcommand, *words = shlex.split(command)
    given = split_options(words)
    options = [[name, *map(_recipe_name, values)] for name, *values in given if name not in _REPLACED]
    if not any(name == "--run.find_lr" for name, *_ in given):  # a recipe sets it
        options.append(["--run.find_lr", "false"])
    options.append(["--model.lr", f"{rate:.2g}"])
    return shlex.join([program, subcommand, *(word for option in options for word in option)])


def _recipe_name(value: str) -> str:
    """Return the name of a shipped recipe, such as finetune/folder, for its file. Other values are unchanged."""
    root, path = recipes_root(), Path(value)
    return str(path.relative_to(root).with_suffix("")) if root and path.is_relative_to(root) else value
