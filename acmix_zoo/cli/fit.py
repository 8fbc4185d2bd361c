"""The commands `fit`, `validate`, `test` and `predict`: start `TrainingCLI` with a recipe, or show a short help."""

from __future__ import annotations

import shlex
import sys
from collections.abc import Callable, Sequence
from typing import Any

from acmix_zoo.cli.commands import COMMANDS
from acmix_zoo.cli.find_task import find_task
from acmix_zoo.cli.old_names import with_current_options
from acmix_zoo.cli.recipes import with_config_files

_CONFIG = {
    "--config CONFIG": "a recipe such as finetune/folder, a YAML file, or a run folder. May be repeated; later ones "
    "override",
}
_EVALUATION = {
    **_CONFIG,
    "--data.source SOURCE": "data set (default: the one that the run was trained on)",
    "--ckpt_path FILE": "best (the default), last, a run folder or a checkpoint file",
    "--model.pretrained WEIGHTS": "evaluate these weights instead of a checkpoint",
    "--data.batch_size N": "images per batch and device",
    "--data.num_workers N": "processes that load images",
}
# The options that most people use; `--help-all` lists all of them.
_OPTIONS: dict[str, dict[str, str]] = {
    "fit": {
        **_CONFIG,
        "--data.source SOURCE": "folder with one subfolder per class (train/ and test/ are recognised), table, "
        "Hub data set, or fashion_mnist",
        "--model.model NAME": "network: a name of `acmix-zoo list`, any timm model, or a weight folder",
        "--model.pretrained WEIGHTS": "weights to start from: true, false, a tag, or anything that MODEL can be",
        "--data.image_size PIXELS": "side length of the square input, in pixels",
        "--data.batch_size N": "images per batch and device",
        "--model.lr LR": "learning rate",
        "--trainer.max_epochs N": "number of epochs",
        "--data.num_workers N": "processes that load images (0: load in the training process)",
        "--run.folder FOLDER": "output folder (default: runs/RECIPE-DATA). Run the same command again to resume",
    },
    "validate": _EVALUATION,
    "test": _EVALUATION,
    "predict": {
        **_CONFIG,
        "--data.predict PATH": "an image, or a folder of images",
        "--ckpt_path FILE": "best (the default), last, a run folder or a checkpoint file",
        "--data.batch_size N": "images per batch and device",
        "--data.num_workers N": "processes that load images",
    },
}
_SUMMARIES = {
    "fit": "Train a network, or fine-tune pretrained weights. Logs, checkpoints and weights go to the run folder.",
    "validate": "Measure the accuracy of a run's best weights on the validation split.",
    "test": "Measure the accuracy of a run's best weights on the test split.",
    "predict": "Classify images with a run's best weights and write predictions.csv to the run folder.",
}


def fit(arguments: Sequence[str]) -> None:
    """Train from a recipe."""
    run_trainer(["fit", *arguments])


def validate(arguments: Sequence[str]) -> None:
    """Print the metrics of a run on the validation split."""
    run_trainer(["validate", *arguments])


def test(arguments: Sequence[str]) -> None:
    """Print the metrics of a run on the test split."""
    run_trainer(["test", *arguments])


def predict(arguments: Sequence[str]) -> None:
    """Write the classes of images to a run's predictions.csv."""
    run_trainer(["predict", *arguments])


def run_trainer(argv: Sequence[str], before_fit: Callable[[Any], None] | None = None) -> Any:
    """Run fit, validate, test or predict, and return the `TrainingCLI` (None after --help).

    Args:
        argv: the command and its options.
        before_fit: called with the `TrainingCLI` when everything is built, before the first training step.

    Raises:
        ModuleNotFoundError: the training dependencies are missing.
        ValueError, OSError: options, data or checkpoints cannot be used.
    """
    if "-h" in argv or "--help" in argv:
        print(short_help(argv[0]))
        return None
    try:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from acmix_zoo.cli.trainer import TrainingCLI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. Training needs more packages. Install them with: pip install 'acmix-zoo[train]'"
        ) from error

    argv = with_config_files(["--help" if word == "--help-all" else word for word in with_current_options(argv)])

    class Run(TrainingCLI):
        def before_fit(self) -> None:
            if before_fit:
                before_fit(self)

    task = find_task(argv)
    # LightningCLI reads sys.argv, and the processes that Lightning starts for other devices run the same command.
    original, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        return Run(command=shlex.join(["acmix-zoo", *argv]), task=task)
    except MisconfigurationException as error:  # Lightning's exception for incompatible options
        raise ValueError(f"Lightning rejected the options of this command: {error}") from error
    finally:
        sys.argv = original


def short_help(command: str) -> str:
    """Return the help of a command with the options that most people use."""
    options = _OPTIONS[command]
    width = max(map(len, options)) + 2
    example = f"acmix-zoo {command} {COMMANDS[command].example}"
    return "\n".join(
        [
            f"usage: acmix-zoo {command} --config CONFIG [options]\n\n{_SUMMARIES[command]}\n",
            *(f"  {option:{width}}{text}" for option, text in options.items()),
            f"\nExample: {example}\n\nAll options: acmix-zoo {command} --help-all",
        ]
    )
