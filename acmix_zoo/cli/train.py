"""The command `acmix-zoo train`: fine-tune a network on a folder of images, without a recipe of one's own.

It fills in the recipe `finetune/folder` and runs `fit`. The run folder holds the resolved configuration, and the record
of the weights states the `fit` command.
"""

from __future__ import annotations

import argparse
import shlex
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from acmix_zoo.cli.parser import MODEL_HELP, Parser

RECIPE = "finetune/folder"
_DESCRIPTION = f"""\
Fine-tune a pretrained network on a folder that has one subfolder of images for each class:
photos/cat/1.jpg, photos/dog/2.png, ... A tenth of each class is used for validation, unless
the folder has train/ and val/. A test/ is used once, at the end.

This runs `acmix-zoo fit` with the recipe {RECIPE} and prints that command. Options of `fit`
may follow, such as --data.num_workers 2 (all of them: acmix-zoo fit --help-all). For detection
and segmentation, use `fit` with a recipe such as detect/bccd or segment/camvid."""


def train(arguments: Sequence[str]) -> None:
    """Fine-tune a network on a folder of images.

    Raises:
        FileNotFoundError: the folder or the model does not exist.
        ConnectionError: pretrained weights have to be downloaded, and the Hub cannot be reached.
        ValueError: the folder or the model cannot be used.
    """
    own, further = split_fit_options(arguments)
    options = _parse(own)

    from acmix_zoo.cli.data import check_class_folders
    from acmix_zoo.cli.fit import run_trainer
    from acmix_zoo.cli.run_folder import is_first_process, next_run_folder

    check_class_folders(options.folder)  # before weights are downloaded
    start = find_start(options.model, options.from_scratch)
    new_folder = next_run_folder(options.folder)
    folder = options.out or new_folder.path
    is_streamed = "--data.streaming true" in " ".join(further).replace("=", " ").lower()
    words = fit_arguments(options, start, folder, is_streamed)
    if is_first_process():
        for line in start.remarks:
            print(line)
        if not options.out and new_folder.unfinished:
            print(f"{new_folder.unfinished} is unfinished. To resume it: {resume_command(new_folder.unfinished)}")
        print(f"acmix-zoo {shlex.join([*words, *further])}", flush=True)

    def name_resume_command(cli: Any) -> None:
        # the same command would start a new run in another folder
        cli.run.resume_command = f"`{resume_command(folder)}`"

    run_trainer([*words, *further], before_fit=name_resume_command)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("acmix-zoo train", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("folder", metavar="FOLDER", help="folder of images, or anything else that --data.source of `fit` accepts")
    add(
        "--model",
        metavar="NAME",
        help=f"{MODEL_HELP}; or any network of timm, such as resnet18 (default: the recipe's)",
    )
    add("--epochs", type=int, metavar="N", help="number of passes over the images (default: 12)")
    add("--size", type=int, metavar="PIXELS", help="side length of the images (default: 96, or that of --model)")
    add(
        "--out", type=Path, metavar="FOLDER", help="run folder (default: runs/FOLDER; if it exists, runs/FOLDER-2, ...)"
    )
    add("--patience", type=int, metavar="N", help="stop after N epochs without a better validation accuracy")
    add("--from-scratch", action="store_true", help="start from random weights, without pretrained ones")
    options: argparse.Namespace = parser.parse_args(arguments)
    for name in ("epochs", "size", "patience"):
        if (value := getattr(options, name)) is not None and value < 1:
            parser.error(f"--{name} {value} is too small. Use 1 or more")
    parser.check_output("--out", options.out, is_folder=True)
    return options


def split_fit_options(arguments: Sequence[str]) -> tuple[list[str], list[str]]:
    """Separate the options of `fit`, which have a dot in their name and one value each, from all other arguments."""
    own, further = [], []
    words = iter(arguments)
    for word in words:
        name, equals, _ = word.partition("=")
        if not (name.startswith("--") and "." in name):
            own.append(word)
            continue
        further.append(word)
        if not equals and (value := next(words, None)) is not None:
            further.append(value)
    return own, further


@dataclass(frozen=True)
class Start:
    """What training starts from.

    Attributes:
        options: options of `fit` with their values: the network, its weights and how images are prepared for it.
        remarks: lines to print.
    """

    options: dict[str, str] = field(default_factory=dict)
    remarks: list[str] = field(default_factory=list)


def find_start(model: str | None, from_scratch: bool) -> Start:
    """Return what training starts from.

    Images get the size and normalisation that the model states, because pretrained weights work best with them.

    Args:
        model: any model, or None for that of the recipe.
        from_scratch: whether to leave out its weights.

    Raises:
        FileNotFoundError: there is no such model. The error lists the closest names.
        ValueError: `from_scratch` is set for weights that are not given by name.
    """
    if model is None:
        return Start({"model.pretrained": "false"} if from_scratch else {})
    import timm

    from acmix_zoo.weights.locate import Kind, locate

    location = locate(model)
    start = Start({"model.model": model})
    if location.kind is Kind.NETWORK and not from_scratch and not timm.models.is_model_pretrained(model):
        from_scratch = True
        start.remarks.append(f"There are no pretrained weights for {model}, so it is trained from scratch")
    if from_scratch and location.kind is not Kind.NETWORK:
        raise ValueError(
            f"--from-scratch: {model} is {location.kind.value}. Expected the name of a network. Leave out "
            "--from-scratch to start from these weights"
        )
    if from_scratch:
        start.options["model.pretrained"] = "false"
    if cfg := _preprocessing(location):
        start.options["data.image_size"] = str(cfg["input_size"][1])
        start.options.update({f"data.{name}": str(list(cfg[name])) for name in ("mean", "std")})
    return start


def _preprocessing(location: Any) -> dict[str, Any]:
    """Return timm's pretrained_cfg of a model as far as it is known without building the model, or {}."""
    import timm

    from acmix_zoo.weights import read_config
    from acmix_zoo.weights.fetch import fetch
    from acmix_zoo.weights.locate import Kind
    from acmix_zoo.weights.resolve import read_described

    if location.kind is Kind.NETWORK:
        known = timm.get_pretrained_cfg(location.name)
        return known.to_dict() if known else {}
    if location.kind in (Kind.WEIGHT_FOLDER, Kind.REPOSITORY):
        return dict(read_config(fetch(location)).get("pretrained_cfg", {}))
    if location.path and location.kind is Kind.CHECKPOINT and (described := read_described(location.path)):
        return asdict(described.network.pretrained_cfg)
    return {}


def fit_arguments(options: argparse.Namespace, start: Start, folder: Path, is_streamed: bool = False) -> list[str]:
    """Return the command of `fit` and its arguments."""
    settings = {
        "config": RECIPE, "data.source": options.folder, "run.folder": str(folder), **start.options
    }  # fmt: skip
    if not is_streamed:  # the number of images of each class is not known
        settings["model.class_weights"] = "balanced"
    given = {"data.image_size": options.size, "trainer.max_epochs": options.epochs}
    settings |= {name: str(value) for name, value in given.items() if value is not None}
    words = ["fit", *(word for name, value in settings.items() for word in (f"--{name}", value))]
    if options.patience is not None:
        words += ["--trainer.callbacks+=EarlyStopping", "--trainer.callbacks.monitor=val/top1"]
        words += ["--trainer.callbacks.mode=max", f"--trainer.callbacks.patience={options.patience}"]
    return words


def resume_command(folder: Path) -> str:
    """Return the command that resumes the run in a folder."""
    return f"acmix-zoo fit --config {shlex.quote(str(folder))}"
