"""Command-line parser with short errors: one line with the closest options instead of a list of all options."""

from __future__ import annotations

import argparse
import difflib
import re
import sys
from typing import NoReturn

# Plain words for the types in a parser's errors.
_TYPES = {"float": "a number", "int": "a whole number", "bool": "true or false", "str": "text", "NoneType": "null"}


class Parser(argparse.ArgumentParser):
    """An ArgumentParser with short errors. As a mixin before jsonargparse's parser, it shortens its errors."""

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Print what is wrong, the closest options and how to list all of them, and exit with status 2."""
        if not getattr(self, "exit_on_error", True):  # the caller wants the exception
            super().error(message)
        parser = getattr(ex, "subcommand_parser", None) or self  # jsonargparse's parser for `fit` and so on
        program = " ".join(["acmix-zoo", *parser.prog.replace("[options]", "").split()[1:]])
        options = re.findall(r"--[\w.+-]+", parser.format_usage())
        print(f"{program}: error: {explain(message, options)}\nAll options: {program} --help", file=sys.stderr)
        sys.exit(2)


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
    # Prefer a missing prefix (--lr for --model.lr) over a misspelling.
    near = [option for option in options if option.endswith(f".{name}")]
    near = list(dict.fromkeys([*near, *difflib.get_close_matches(word, set(options), 3, 0.75)]))[:3]
    return f"unknown option {word}" + (f"; did you mean {' or '.join(near)}?" if near else "")
