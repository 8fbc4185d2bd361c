"""The program `acmix-zoo`: find the function of a command, run it, and turn errors into one line."""

from __future__ import annotations

import importlib
import io
import locale
import os
import select
import signal
import subprocess
import sys
import tempfile
import traceback
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import acmix_zoo
from acmix_zoo import _startup
from acmix_zoo.cli.commands import COMMANDS, DEBUG, answer_before_imports

PACKAGE = Path(acmix_zoo.__file__).parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Args:
        arguments: the command and its arguments; by default, those of the program.

    Returns:
        The exit status: 0, 1 (the command failed), 2 (wrong arguments), or 128 + the number of the signal that ended
        the command.
    """
    argv = list(sys.argv[1:] if arguments is None else arguments)
    try:
        _startup.restore()
        _use_utf8(argv, is_program=arguments is None)
        if arguments is None:
            warnings.showwarning = _show_warning
        status = _run([word for word in argv if word != DEBUG], is_debugging=DEBUG in argv)
        sys.stdout.flush()  # here rather than at exit, where an error could not be caught
        return status
    except KeyboardInterrupt:
        print("\nacmix-zoo: interrupted", file=sys.stderr)
        return 128 + signal.SIGINT
    except BrokenPipeError as error:
        if not _is_reader_gone():  # a different pipe broke, such as the one to a loader's process
            print(f"acmix-zoo: error: {error}", file=sys.stderr)
            return 1
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # for the flush at exit
        return _startup.READER_GONE


def _show_warning(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    file: Any = None,
    line: str | None = None,
) -> None:
    """Print a warning of this project as one line, and others as Python does."""
    is_ours = category is UserWarning and Path(filename).is_relative_to(PACKAGE)
    text = f"Warning: {message}\n" if is_ours else warnings.formatwarning(message, category, filename, lineno, line)
    (file or sys.stderr).write(text)


def _is_reader_gone() -> bool:
    """Return whether the reader of the output, such as `head`, has seen enough."""
    try:
        sys.stdout.flush()
    except BrokenPipeError:
        return True
    try:  # a long text is not buffered, so there may be nothing left to flush
        poll = select.poll()
        poll.register(sys.stdout, select.POLLOUT)
        return any(events & select.POLLERR for _, events in poll.poll(0))
    except (OSError, ValueError, AttributeError):  # standard output is not a file, or Windows, which has no poll
        return False


def _run(argv: list[str], is_debugging: bool) -> int:
    status = answer_before_imports(argv)
    if status is not None:
        return status
    if argv[0] == "--version":
        print(acmix_zoo.__version__)
        return 0
    module, _, function = COMMANDS[argv[0]].function.partition(":")
    try:
        succeeded = getattr(importlib.import_module(f"acmix_zoo.cli.{module}"), function)(argv[1:])
    except BrokenPipeError:
        raise
    except Exception as error:
        print(f"acmix-zoo: error: {_message(error)}", file=sys.stderr)
        if is_debugging:
            traceback.print_exception(error)
        return 1
    return 1 if succeeded is False else 0


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


def _message(error: Exception) -> str:
    """Return what to print for an error.

    The traceback of an error that no one expected goes to a file, because it may take days to repeat the command. In
    the log of a cluster's job it is printed, because temporary files of its machines may be out of reach.
    """
    if _is_user_error(error):
        return str(error)
    lines = "".join(traceback.format_exception(error))
    if {"RANK", "SLURM_JOB_ID"} & os.environ.keys():
        return f"unexpected error\n{lines}"
    try:
        with tempfile.NamedTemporaryFile("w", prefix="acmix-zoo-", suffix=".txt", delete=False) as file:
            file.write(lines)
    except OSError:  # such as a full disk
        return f"unexpected error\n{lines}"
    return (
        f"unexpected {type(error).__name__}: {error}. The traceback is in {file.name}. If acmix-zoo is at fault, "
        f"please report it. To print the traceback, run the command with {DEBUG}"
    )


def _is_user_error(error: BaseException) -> bool:
    """Return whether the message of an error says enough.

    It does if this package raised the error (possibly in a data-loader worker), or if the operating system did, for
    example because the disk is full.
    """
    if type(error).__module__.startswith("acmix_zoo."):
        return True
    if not isinstance(error, ValueError | OSError | ImportError):
        return False
    if isinstance(error, OSError) and not isinstance(error, FileNotFoundError):
        return True
    frames = traceback.extract_tb(error.__traceback__)
    return bool(frames) and Path(frames[-1].filename).is_relative_to(PACKAGE)
