"""The command `acmix-zoo reproduce`: repeat the training behind weights and compare the metrics with the record."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from acmix_zoo.cli.fit import run_trainer
from acmix_zoo.cli.parser import Parser
from acmix_zoo.cli.record_comparison import print_comparison, resume_changes
from acmix_zoo.cli.recorded_command import Record, find_target, read_settings, split_options
from acmix_zoo.weights import read_config
from acmix_zoo.weights.names import file_name

Train = Callable[[list[str], Callable[[Any], None]], Any]


def reproduce(arguments: Sequence[str], train: Train = run_trainer) -> bool:
    """Repeat the training of weights, or resume the repetition, and compare the metrics.

    Args:
        arguments: NAME and options, most of them for `fit`.
        train: runs `fit`; takes its arguments and a function to call before the first step.

    Returns:
        Whether every recorded metric was reached within its tolerance.

    Raises:
        FileNotFoundError, ValueError: see `find_target`.
    """
    parser = Parser(
        "acmix-zoo reproduce",
        usage="acmix-zoo reproduce NAME [--run.folder FOLDER] [--tolerance POINTS] [--trust-command] [options of "
        "fit ...]",
        description="Repeat the training of weights as their record describes it, and compare the metrics. Run the "
        "same command again to resume after an interruption, or to compare a finished run once more.",
    )
    parser.add_argument("name", help="weights, a weight folder, a run folder, ORG/NAME on the Hub, or a recipe")
    parser.add_argument("--run.folder", dest="folder", type=Path, help="output folder (default: runs/reproduce/NAME)")
    parser.add_argument(
        "--tolerance",
        type=float,
        metavar="POINTS",
        help="allowed difference in percentage points (default: three binomial standard errors of an accuracy, given "
        "the number of images; 2 for other metrics)",
    )
    parser.add_argument(
        "--trust-command",
        action="store_true",
        help="repeat any recorded command. By default, weights from elsewhere may only name shipped recipes and plain "
        "options, because a command can run any code",
    )
    if arguments and arguments[0].startswith("-") and arguments[0] not in ("-h", "--help"):
        parser.error(f"the first argument is the option {arguments[0]}. Expected NAME first, then options")
    options, more = parser.parse_known_args(arguments)
    target = find_target(options.name, options.trust_command)
    folder = options.folder or Path("runs/reproduce") / file_name(target.name)
    weights = folder / "weights"
    if (weights / "config.json").is_file():
        print(f"The run in {folder} is finished, so it is only compared. For a new run, set a different --run.folder")
    else:
        arguments = [*target.arguments, *more]
        if changed := resume_changes(target.record):
            print(
                f"Warning: options of the recorded run were changed when it was resumed ({changed}), so a single "
                "command does not repeat it bit for bit",
                flush=True,
            )
        _train_parents(arguments, more, train)
        print(f"Training {target.name} in {folder}", flush=True)
        cli = train(["fit", *arguments, "--run.folder", str(folder), "--ckpt_path", "last"], _data_check(target.record))
        if not cli.trainer.is_global_zero or not (weights / "config.json").is_file():  # fast_dev_run writes no weights
            return True
    return print_comparison(target, read_config(weights)["acmix_zoo"], options.tolerance)


def _train_parents(arguments: Sequence[str], more: Sequence[str], train: Train) -> None:
    """Train the weights that a training run starts from, if they are missing and a neighbouring recipe produces them.

    Args:
        arguments: the arguments of the training run.
        more: the arguments that the user added. Those for data, trainer and further configs also apply to the parents.
            So does the data source of the training run, if its arguments state one.
        train: see `reproduce`.
    """
    start: Any = None
    siblings: list[Path] = []
    for name, *values in split_options(arguments):
        if not values:  # an error of the training's parser
            continue
        if name == "--config" and Path(values[0]).is_file():
            start = (read_settings(values[0]).get("model") or {}).get("pretrained", start)
            siblings += sorted(Path(values[0]).parent.glob("*.yaml"))
        elif name == "--model.pretrained":
            start = values[0]
    if not isinstance(start, str) or (Path(start) / "config.json").is_file():
        return
    for recipe in siblings:
        place = (read_settings(recipe).get("run") or {}).get("folder")
        if place and Path(place) / "weights" == Path(start):
            shared = [words for words in split_options(arguments) if words[0] == "--data.source"]
            shared += [
                words
                for words in split_options(more)
                if words[0] == "--config" or words[0].startswith(("--data.", "--trainer."))
            ]
            parent = ["--config", str(recipe), *(word for words in shared for word in words)]
            _train_parents(parent, more, train)
            print(f"First training {recipe}, which produces the weights to start from ({start})", flush=True)
            train(["fit", *parent, "--ckpt_path", "last"], lambda cli: None)
            return


def _data_check(record: Record) -> Callable[[Any], None]:
    """Return a function for `train` that warns if the images are not those of the record."""
    recorded = (record.get("dataset") or {}).get("fingerprint")

    def check(cli: Any) -> None:
        found = cli.datamodule.card()["dataset"] if recorded else {}
        if found and found["fingerprint"] != recorded and cli.trainer.is_global_zero:
            print(
                f"Warning: the images are not those of the record ({found['name']} has the fingerprint "
                f"{found['fingerprint']}, but {record['dataset']['name']} was recorded with {recorded}). The metrics "
                "may differ for that reason alone",
                flush=True,
            )

    return check
