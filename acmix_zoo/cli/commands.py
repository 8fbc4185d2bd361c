"""The commands of `acmix-zoo`: what each is for, and which function runs it.

This file imports nothing that takes time, so `acmix-zoo --help` answers before torch is loaded. To add a command, write
a function that takes the command's arguments in a file of its own in this folder, and add a line to `GROUPS`.
"""

from __future__ import annotations

import difflib
import importlib
import sys
from collections.abc import Sequence
from typing import NamedTuple

from acmix_zoo.cli.fit_help import short_help


class Command(NamedTuple):
    """A command of the command line."""

    function: str  # "module:function" in acmix_zoo.cli. It takes the arguments; returning False means exit status 1
    arguments: str  # the most important ones, for the overview
    summary: str
    example: str  # arguments of a complete example, for the help of the command


GROUPS: dict[str, dict[str, Command]] = {
    "Train on images and use the result": {
        "train": Command(
            "train:train",
            "FOLDER [--model NAME]",
            "fine-tune a network on a folder of images",
            "photos --epochs 20 --size 128",
        ),
        "fit": Command(
            "fit:fit",
            "--config finetune/folder --data.source FOLDER",
            "train a network with a recipe",
            "--config finetune/folder --data.source photos --trainer.max_epochs 20",
        ),
        "validate": Command(
            "fit:validate",
            "--config RUN",
            "measure the scores on the validation split",
            "--config runs/photos",
        ),
        "test": Command("fit:test", "--config RUN", "measure the scores on the test split", "--config runs/photos"),
        "predict": Command(
            "fit:predict",
            "IMAGES --model MODEL",
            "predict classes, boxes or masks, and save them",
            "new_photos --model runs/photos",
        ),
        "classify": Command(
            "classify:classify",
            "IMAGE... --model MODEL",
            "print the most probable classes of images",
            "photos --model runs/photos --csv classes.csv --sheet sheet.png",
        ),
        "explain": Command(
            "explain:explain_image",
            "IMAGE --model MODEL",
            "show what each path contributes to a decision",
            "examples/ankle_boot.png --model acmix_resnet_pico",
        ),
        "app": Command(
            "app:app", "[MODEL...]", "open a web page to try networks and fine-tune them", "runs/photos --open"
        ),
        "data": Command("data:data", "FOLDER", "check a data set: splits, classes, unusable files", "photos"),
    },
    "Networks and weights": {
        "list": Command(
            "list:list_networks",
            "[PATTERN] [--pretrained]",
            "list networks or weights, with their cost",
            "'*swin*' --pretrained",
        ),
        "info": Command("info:info", "[MODEL]", "show a network's cost per layer, or this machine", "acmix_resnet50"),
        "verify": Command(
            "verify:verify",
            "MODEL... [--data SOURCE]",
            "check weights against their record",
            "acmix_resnet_pico.fashion_mnist --data fashion_mnist",
        ),
        "export": Command(
            "export:export",
            "MODEL FILE.onnx [--int8]",
            "write a network as ONNX, .pt2 or a weight folder",
            "runs/photos photos.onnx --data photos",
        ),
        "convert": Command(
            "convert:convert_checkpoint",
            "FILE --model NAME",
            "convert a checkpoint file to a weight folder",
            "network.pth --model acmix_resnet_pico.mine",
        ),
        "push": Command(
            "push:push", "FOLDER ORG/NAME", "publish weights on the Hugging Face Hub", "runs/photos org/photos"
        ),
        "pull": Command(
            "pull:pull", "ORG/NAME [FOLDER]", "download weights from the Hugging Face Hub", "org/photos photos_weights"
        ),
    },
    "Measure, reproduce and set up": {
        "reproduce": Command(
            "reproduce:reproduce",
            "MODEL",
            "repeat the training of weights and compare the metrics",
            "acmix_resnet_pico.fashion_mnist",
        ),
        "bench": Command(
            "bench:bench",
            "MODEL MODEL...",
            "compare the speed and memory of networks and layers",
            "acmix_resnet50 resnet50",
        ),
        "plan": Command(
            "plan:plan",
            "RECIPE...",
            "estimate the memory and time of training on n GPUs",
            "imagenet1k/acmix_resnet50 --gpus 1 8",
        ),
        "completion": Command("completion:completion", "SHELL", "print a script that completes commands", "bash"),
    },
}
DEBUG = "--debug"
"""The option with which every command prints the traceback of an error. It may be anywhere among the arguments."""
LIGHT_COMMANDS = ("train", "classify", "explain", "app")
"""The commands whose files import nothing that takes time, so that they can print their help before torch is loaded."""
RECIPE_COMMANDS = ("fit", "validate", "test", "predict")
"""The commands that take a recipe. They share one large parser, which depends on the task of the recipe."""
COMMANDS = {name: command for group in GROUPS.values() for name, command in group.items()}

_HEAD = "acmix-zoo: train, evaluate, use, publish and measure networks that mix attention and convolution.\n"
_FOOT = """
MODEL is the name of a network or of weights (see `acmix-zoo list --pretrained`), a weight folder, a run folder, a
checkpoint or an ORG/NAME on the Hugging Face Hub. RUN is a run folder of `train` or `fit`.
`acmix-zoo COMMAND --help` shows the options of a command. After an error, --debug shows where it occurred.
The exit status is 0 after success, 1 if the command failed, 2 for wrong arguments and 128 + N after signal N."""


def overview() -> str:
    """Return the text of `acmix-zoo --help`."""
    left = {name: f"  {name:10} {command.arguments}" for name, command in COMMANDS.items()}
    width = max(map(len, left.values())) + 2
    lines = [_HEAD]
    for title, group in GROUPS.items():
        lines += [f"{title}:", *(f"{left[name]:{width}}{command.summary}" for name, command in group.items()), ""]
    return "\n".join(lines) + _FOOT


def answer_before_imports(argv: Sequence[str]) -> int | None:
    """Answer --help and unknown commands, which need no module that takes time to import.

    Returns:
        The exit status, or None if there is a command to run.
    """
    argv = [word for word in argv if word != DEBUG]
    if not argv or argv[0] in ("-h", "--help", "help"):
        print(overview())
        return 0
    if argv[0] in RECIPE_COMMANDS and {"-h", "--help"} & set(argv):
        print(short_help(argv[0], COMMANDS[argv[0]].example))
        return 0
    if argv[0] in LIGHT_COMMANDS and argv[1:] in (["-h"], ["--help"]):
        module, _, function = COMMANDS[argv[0]].function.partition(":")
        getattr(importlib.import_module(f"acmix_zoo.cli.{module}"), function)(argv[1:])  # its parser ends the program
    if argv[0] in COMMANDS or argv[0] == "--version":
        return None
    near = difflib.get_close_matches(argv[0], COMMANDS, n=1)
    hint = f"Did you mean {near[0]}?" if near else f"The commands are {', '.join(COMMANDS)}."
    print(f"acmix-zoo: error: unknown command {argv[0]!r}. {hint}", file=sys.stderr)
    return 2
