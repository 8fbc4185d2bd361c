"""The command `acmix-zoo completion`: print a script with which a shell completes commands, options and names."""

from __future__ import annotations

import argparse
import importlib
from collections.abc import Iterable, Sequence
from typing import Any

import shtab

from acmix_zoo.cli.commands import COMMANDS, RECIPE_COMMANDS
from acmix_zoo.cli.parser import MODEL_HELP, Parser, ParserReady, parsers_only
from acmix_zoo.weights.names import list_models

_WHERE = {
    "bash": "~/.local/share/bash-completion/completions/acmix-zoo",
    "zsh": "_acmix-zoo in a folder of $fpath",
    "fish": "~/.config/fish/completions/acmix-zoo.fish",
}


def completion(arguments: Sequence[str]) -> None:
    """Print the completion script of a shell."""
    parser = Parser(
        "acmix-zoo completion",
        description="Print a script that completes commands, options, files and the names of networks. Save it as "
        + " or ".join(f"{path} ({shell})" for shell, path in _WHERE.items())
        + ". The command takes a few seconds.",
    )
    parser.add_argument("shell", choices=list(_WHERE))
    print(completion_script(parser.parse_args(arguments).shell, COMMANDS))


def completion_script(shell: str, commands: Iterable[str]) -> str:
    """Return the completion script of a shell for some of the commands."""
    root = argparse.ArgumentParser("acmix-zoo")
    root.add_argument("--version", action="store_true")
    subparsers = root.add_subparsers()
    for name in commands:
        subparser = subparsers.add_parser(name, help=COMMANDS[name].summary, description=COMMANDS[name].summary)
        for action in _actions(name):
            _add(subparser, action)
        if name in RECIPE_COMMANDS:
            subparser.add_argument("--help-all", action="store_true", help="show all options")
    script: str = shtab.complete(root, shell)
    return script


def _actions(command: str) -> list[argparse.Action]:
    """Return the arguments of a command, without --help."""
    parsers = [_parser(command, [])] if command not in RECIPE_COMMANDS or command == "predict" else []
    try:
        if command in RECIPE_COMMANDS:  # each of them is a subcommand of Lightning's parser
            trainer = _parser(command, ["--task=classification"])
            choices = next(a.choices for a in trainer._actions if isinstance(a, argparse._SubParsersAction))
            parsers.append(choices[command])
    except ModuleNotFoundError:  # the training libraries are not installed
        pass
    actions = [action for parser in parsers for action in parser._actions if "--help" not in action.option_strings]
    return list({tuple(action.option_strings) or action.dest: action for action in actions}.values())


def _parser(command: str, arguments: list[str]) -> argparse.ArgumentParser:
    """Return the parser of a command with these arguments. `predict` has two."""
    module, _, function = COMMANDS[command].function.partition(":")
    try:
        with parsers_only():
            getattr(importlib.import_module(f"acmix_zoo.cli.{module}"), function)(arguments)
    except ParserReady as ready:
        return ready.parser
    raise AssertionError(f"{command} has no parser")


def _add(parser: argparse.ArgumentParser, action: argparse.Action) -> None:
    """Add an argument to the parser that describes a command to shtab."""
    options: dict[str, Any] = {"help": (action.help or "").partition("\n")[0].replace("%", "%%")}
    if action.nargs == 0:
        parser.add_argument(*action.option_strings, action="store_true", **options)
        return
    if action.choices:
        options["choices"] = list(action.choices)
    if isinstance(action.nargs, str):
        options["nargs"] = action.nargs
    added = parser.add_argument(*(action.option_strings or [action.dest]), **options)
    if action.help == MODEL_HELP or action.dest in ("weights", "candidates"):
        added.complete = _models()  # type: ignore[attr-defined]
    elif not action.choices and action.type not in (int, float):
        added.complete = shtab.FILE  # type: ignore[attr-defined]


def _models() -> dict[str, Any]:
    """Return how shtab completes a model: by the name of a network or of weights, or by a path."""
    names = " ".join([*list_models(), *list_models(pretrained=True)])
    return {
        **shtab.FILE,
        "bash": "_acmix_zoo_models",
        "zsh": "_acmix_zoo_models",
        "preamble": {
            "bash": f'_acmix_zoo_models() {{\n  compgen -W \'{names}\' -- "$1"\n  compgen -f -- "$1"\n}}',
            "zsh": f"_acmix_zoo_models() {{\n  compadd {names}\n  _files\n}}",
        },
    }
