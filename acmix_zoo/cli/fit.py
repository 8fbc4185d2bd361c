"""The commands `fit`, `validate`, `test` and `predict`: start `TrainingCLI` with a recipe."""

from __future__ import annotations

import shlex
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.find_task import find_task
from acmix_zoo.cli.predict import predict_images
from acmix_zoo.cli.recipes import with_config_files


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
    """Predict images with any weights (`IMAGES --model`), or with a run and its options (`--config`)."""
    is_short = not arguments or not arguments[0].startswith("-")  # nothing, or an image
    if is_short or {word.partition("=")[0] for word in arguments} & {"--model", "--threshold", "--output"}:
        predict_images(arguments)
    else:
        run_trainer(["predict", *arguments])


def run_trainer(argv: Sequence[str], before_fit: Callable[[Any], None] | None = None) -> Any:
    """Run fit, validate, test or predict, and return the `TrainingCLI`.

    Args:
        argv: the command and its options.
        before_fit: called with the `TrainingCLI` when everything is built, before the first training step.

    Raises:
        ModuleNotFoundError: the training dependencies are missing.
        ValueError, OSError: options, data or checkpoints cannot be used.
    """
    try:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from acmix_zoo.cli.trainer import TrainingCLI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            f"{error}. Training needs more packages. Install them with: pip install 'acmix-zoo[train]'"
        ) from error

    argv = with_config_files(["--help" if word == "--help-all" else word for word in argv])

    class Run(TrainingCLI):
        def before_fit(self) -> None:
            if before_fit:
                before_fit(self)

    task = find_task(argv)
    # LightningCLI reads sys.argv, and the processes that Lightning starts for other devices run the same command.
    original, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        return Run(command=shlex.join(["acmix-zoo", *argv]), task=task)
    except (MisconfigurationException, ValueError) as error:  # Lightning's exceptions for incompatible options
        if isinstance(error, MisconfigurationException):
            raise ValueError(f"Lightning rejected the options of this command: {error}") from error
        if _is_from_lightning(error):
            raise ValueError(
                f"Lightning stopped: {str(error).strip()}. If this names an option of the trainer, change it"
            ) from error
        raise
    finally:
        sys.argv = original


def _is_from_lightning(error: BaseException) -> bool:
    """Return whether Lightning's own code raised an error, rather than code that it called."""
    import lightning

    raised_in = traceback.extract_tb(error.__traceback__)[-1].filename
    return Path(raised_in).is_relative_to(Path(lightning.__file__).parent)
