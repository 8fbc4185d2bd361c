"""`acmix-zoo`: train, evaluate, use, publish and measure networks.

    acmix-zoo fit      --config finetune/folder --data.source FOLDER [--model.lr 0.05 ...]
    acmix-zoo validate --config runs/X/config.yaml [--ckpt_path best]      accuracy on the validation split
    acmix-zoo test     --config runs/X/config.yaml [--ckpt_path best]      accuracy on the test split
    acmix-zoo predict  --config runs/X/config.yaml --data.predict_source FOLDER      writes runs/X/predictions.csv
    acmix-zoo reproduce NAME [--run.folder FOLDER] [options of fit]        train again what a record says, and compare
    acmix-zoo list     [PATTERN] [--pretrained]                            networks, weights, parameters, MACs, scores
    acmix-zoo info     MODEL                                               parameters, input, weights; the two stages
    acmix-zoo verify   WEIGHTS... [--data SOURCE]                          are they what their record says?
    acmix-zoo export   RUN_OR_CKPT FOLDER [--no-ema]                       a run's weights as a weight folder
    acmix-zoo convert  FILE --model NAME [FOLDER]                          a checkpoint file as a weight folder
    acmix-zoo push     FOLDER org/name [--private] [--revision BRANCH]     to the Hugging Face Hub
    acmix-zoo pull     org/name[@REVISION] [FOLDER]                        from it
    acmix-zoo classify WEIGHTS IMAGE_OR_FOLDER... [--top 5]                the most probable classes of pictures
    acmix-zoo data     FOLDER                                              splits, classes, images, what is skipped
    acmix-zoo bench    acmix_resnet50 resnet50 [--batch 1 8] [--mode both] ...       time, memory, GFLOP/s, growth
    acmix-zoo plan     RECIPE... [--gpus 1 8 32] [--gpu a100]              memory, time, efficiency on n GPUs, on paper

WEIGHTS is a weight folder, a run folder, a checkpoint of `fit`, or a name such as acmix_resnet_pico.fashion_mnist.
`acmix-zoo COMMAND --help` lists the options.
"""

import difflib
import io
import locale
import os
import shlex
import signal
import subprocess
import sys
import traceback
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acmix_zoo import _startup

TRAINER_COMMANDS = ("fit", "validate", "test", "predict")
MODEL_COMMANDS = ("list", "info")
WEIGHT_COMMANDS = ("verify", "export", "convert", "push", "pull")
COMMANDS = (*TRAINER_COMMANDS, *MODEL_COMMANDS, *WEIGHT_COMMANDS, "classify", "data", "bench", "plan", "reproduce")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; the exit code is 0, 1 (the run failed), 2 (bad arguments) or 128 + a signal's number."""
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _startup.restore()
        _use_utf8(argv, is_program=arguments is None)
        return _run(argv)
    except KeyboardInterrupt:
        print("\nacmix-zoo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT


def _run(argv: list[str]) -> int:
    if not argv or argv[0] in ("-h", "--help"):
        print(__doc__)
        return 0
    if argv[0] == "--version":
        import acmix_zoo

        print(acmix_zoo.__version__)
        return 0
    if argv[0] not in COMMANDS:
        near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
        hint = f"did you mean {near[0]}?" if near else f"commands: {', '.join(COMMANDS)}"
        print(f"acmix-zoo: unknown command {argv[0]!r}; {hint}", file=sys.stderr)
        return 2
    try:
        if argv[0] == "classify":
            from acmix_zoo.cli.classify import classify

            classify(argv[1:])
        elif argv[0] == "data":
            from acmix_zoo.cli.data import data

            return 0 if data(argv[1:]) else 1
        elif argv[0] == "bench":
            from acmix_zoo.cli.bench import bench

            bench(argv[1:])
        elif argv[0] == "plan":
            from acmix_zoo.cli.plan import plan

            plan(argv[1:])
        elif argv[0] == "reproduce":
            from acmix_zoo.cli.reproduce import reproduce

            return 0 if reproduce(argv[1:], _train) else 1
        elif argv[0] in MODEL_COMMANDS:
            from acmix_zoo.cli import models as cli_models

            {"list": cli_models.list_, "info": cli_models.info}[argv[0]](argv[1:])
        elif argv[0] in WEIGHT_COMMANDS:
            from acmix_zoo.cli.weights import VERBS

            return 1 if VERBS[argv[0]](argv[1:]) is False else 0
        else:
            _train(argv)
    except (ValueError, OSError, ImportError) as error:
        if not _ours(error):
            raise
        print(f"acmix-zoo: error: {error}", file=sys.stderr)
        return 1
    return 0


def _use_utf8(argv: Sequence[str], is_program: bool) -> None:
    """Make Python read and write all text files as UTF-8, and print characters that the terminal cannot show as "?".

    Recipes, cards and class names are UTF-8 regardless of the locale, but libraries such as jsonargparse open files in
    the locale's encoding. Only a new interpreter can change that, so under other locales the program restarts itself.
    """
    if is_program and not sys.flags.utf8_mode and locale.getencoding().lower() not in ("utf-8", "utf8"):
        command, environment = [sys.executable, "-m", "acmix_zoo.cli", *argv], {**os.environ, "PYTHONUTF8": "1"}
        if os.name == "posix":
            os.execve(command[0], command, environment)
        sys.exit(subprocess.run(command, env=environment).returncode)  # on Windows, exec would not wait for the end
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")


def _ours(error: BaseException) -> bool:
    """Whether the error was raised here, in words for the user, or is a full disk; others keep their traceback."""
    if type(error).__module__.startswith("acmix_zoo."):  # wherever it was raised again, as of a loader's process
        return True
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(Path(__file__).parents[1])


def _train(argv: list[str], before_fit: Callable[[Any], None] | None = None) -> Any:
    """Run fit, validate, test or predict; `before_fit` is called with the command line once all is built."""
    try:
        from lightning.fabric.utilities.exceptions import MisconfigurationException

        from acmix_zoo.cli.recipes import with_config_files
        from acmix_zoo.cli.trainer import TrainingCLI
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(f"{error}; training needs: pip install 'acmix-zoo[train]'") from error

    argv = with_config_files(argv)

    class Run(TrainingCLI):
        def before_fit(self) -> None:
            if before_fit:
                before_fit(self)

    # LightningCLI reads the arguments there; and where Lightning starts further processes, they begin as this one did
    given, sys.argv = sys.argv, [sys.argv[0], *argv]
    try:
        return Run(command=shlex.join(["acmix-zoo", *argv]))
    except MisconfigurationException as error:  # Lightning's exception for incompatible options
        raise ValueError(f"{error}. This is Lightning's message about the options of this command") from error
    finally:
        sys.argv = given
