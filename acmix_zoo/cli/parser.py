"""Command-line parser with short errors: one line with the closest options instead of a list of all options."""

from __future__ import annotations

import argparse
import difflib
import os
import re
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any, NoReturn

from acmix_zoo.cli.commands import COMMANDS

# What `acmix_zoo.weights.locate` accepts, for the help of a command.
MODEL_HELP = "name of a network or of weights, a weight folder, a run folder, a checkpoint, or ORG/NAME on the Hub"
# Plain words for the types in a parser's errors.
_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "NoneType": "null"}

_parsers_only: ContextVar[bool] = ContextVar("parsers_only", default=False)


class ParserReady(BaseException):
    """Within `parsers_only`, a command is about to parse its arguments."""

    def __init__(self, parser: argparse.ArgumentParser) -> None:
        super().__init__()
        self.parser = parser


@contextmanager
def parsers_only() -> Iterator[None]:
    """Within this context, commands raise `ParserReady` instead of parsing arguments, so that nothing is run."""
    token = _parsers_only.set(True)
    try:
        yield
    finally:
        _parsers_only.reset(token)


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with short errors. As a mixin before jsonargparse's parser, it shortens its errors.

    Options have to be written in full. With abbreviations, an incomplete option might set the wrong one.
    """

    help_option = "--help"  # the option that lists all options

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **{"allow_abbrev": False, **kwargs})
        command = COMMANDS.get(self.prog.removeprefix("acmix-zoo "))
        if command and not self.epilog:
            self.epilog = f"Example: {self.prog} {command.example}"

    def parse_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the arguments, or raise `ParserReady` within `parsers_only`."""
        self._raise_if_ready()
        return super().parse_args(*args, **kwargs)

    def parse_known_args(self, *args: Any, **kwargs: Any) -> Any:
        """Parse the known arguments, or raise `ParserReady` within `parsers_only`."""
        self._raise_if_ready()
        return super().parse_known_args(*args, **kwargs)

    def _raise_if_ready(self) -> None:
        if _parsers_only.get():
            raise ParserReady(self)

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, the closest options and how to list all of them, and exit with status 2."""
        if not getattr(self, "exit_on_error", True):  # the caller wants the exception
            super().error(message)
        parser = getattr(ex, "subcommand_parser", None) or self._responsible_parser(message)
        program = " ".join(["acmix-zoo", *parser.prog.replace("[options]", "").split()[1:]])
        options = [option for action in parser._actions for option in action.option_strings if option[:2] == "--"]
        print(
            f"{program}: error: {explain(message, options)}\nAll options: {program} {self.help_option}", file=sys.stderr
        )
        sys.exit(2)

    def check_output(self, option: str, path: Path | None, *, is_folder: bool = False) -> None:
        """Exit with an error if an output file or folder cannot be written, before any work. Create a file's folder."""
        if path is None:
            return
        try:
            if path.exists() and path.is_dir() != is_folder:
                found, expected = ("file", "folder") if is_folder else ("folder", "file")
                self.error(f"{option} {path} is a {found}. Expected the name of a {expected}")
            problem = _write_problem(path, is_folder)
        except OSError as error:
            problem = error.strerror or str(error)
        if problem:
            self.error(f"{option} {path} cannot be written ({problem}). Choose another place")

    def _responsible_parser(self, message: str) -> argparse.ArgumentParser:
        """Return the parser of the subcommand whose required options are missing, or this one."""
        match = re.match(r"the following arguments are required: (\w+)\.", message)
        for action in self._actions:
            if match and isinstance(action, argparse._SubParsersAction) and match[1] in action.choices:
                parser: argparse.ArgumentParser = action.choices[match[1]]
                return parser
        return self


def _write_problem(path: Path, is_folder: bool) -> str:
    """Return why an output file or folder cannot be written, or "". Create the folder of a file."""
    place = next(each for each in (path, *path.absolute().parents) if each.exists())
    if place != path and not place.is_dir():
        return f"{place} is a file"
    if is_folder and path.is_symlink() and place != path:
        return "it is a broken link"
    if not os.access(place, os.W_OK):
        return "permission denied"
    if not is_folder:
        path.parent.mkdir(parents=True, exist_ok=True)
    return ""


def explain(message: str, options: list[str]) -> str:
    """Return an error of argparse or jsonargparse in plain words.

    Args:
        message: the parser's own message.
        options: all options that the parser knows, for suggestions.
    """
    if match := re.match(r"unrecognized arguments: (.*)", message, re.DOTALL):
        return "; ".join(_unknown(word, options) for word in _names(match[1].split()))
    if match := re.search(r"does not accept option '([^']*)'", message):
        return f"in the configuration, {_unknown('--' + match[1], options)}"
    message = re.sub(
        r"the following arguments are required: (?:fit|validate|test|predict)\.", "missing option --", message
    )
    message = re.sub(r'Parser key "([^"]*)":\s*Expected', r"--\1: expected", message)
    message = re.sub(r'Parser key "([^"]*)":\s*', r"--\1: ", message)
    message = re.sub(r"a typing\.Literal\[(.*?)\]", r"one of \1", message)
    message = re.sub(r"(?:a )?<class '(?:\w+\.)*(\w+)'>", lambda m: _TYPES.get(m[1], m[1]), message)
    return message.replace("Got value:", "Got")


def _names(words: list[str]) -> list[str]:
    """Return the options among unrecognised words, without their values, or all words if none is an option."""
    return [word.partition("=")[0] for word in words if word.startswith("-")] or words


def _unknown(word: str, options: list[str]) -> str:
    if not word.startswith("-"):
        return f"unexpected argument {word!r}"
    name = word.lstrip("-")
    # Prefer a missing prefix (--lr for --model.lr) or an abbreviation over a misspelling.
    near = [option for option in options if option.endswith(f".{name}") or option.startswith(word)]
    near = list(dict.fromkeys([*near, *difflib.get_close_matches(word, set(options), 3, 0.75)]))[:3]
    return f"unknown option {word}" + (f"; did you mean {' or '.join(near)}?" if near else "")
