"""What the command line does before torch is imported, which takes seconds: answer --help, and end on Ctrl-C.

`acmix_zoo/__init__.py` imports this module first, because Python imports a package before its modules. In programs
other than the command line, it does nothing.
"""

import os
import signal
import sys
import threading
from pathlib import Path
from types import FrameType

from acmix_zoo.cli import commands

READER_GONE = 128 + 13  # exit status of a program that SIGPIPE ends, as shells report it


def _quit(number: int, frame: FrameType | None) -> None:
    sys.stderr.write("\nacmix-zoo: interrupted\n")
    sys.stderr.flush()
    os._exit(128 + signal.SIGINT)  # an exception could be swallowed by one of the libraries; nothing needs cleaning up


def _is_command_line() -> bool:
    program = sys.argv[0] if sys.argv else ""
    # while Python looks for the module of `python -m`, argv[0] is "-m"
    return Path(program).stem == "acmix-zoo" or (program == "-m" and "acmix_zoo.cli" in sys.orig_argv)


def restore() -> None:
    """Let Ctrl-C raise KeyboardInterrupt again, once the command line can handle it."""
    if signal.getsignal(signal.SIGINT) is _quit:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command_line():
    if (
        threading.current_thread() is threading.main_thread()
        and signal.getsignal(signal.SIGINT) is signal.default_int_handler  # a background job ignores it
    ):
        signal.signal(signal.SIGINT, _quit)
    try:
        status = commands.answer_before_imports(sys.argv[1:])
        sys.stdout.flush()
    except BrokenPipeError:  # the reader of a pipe, such as `head`, has seen enough
        os._exit(READER_GONE)
    if status is not None:
        sys.exit(status)
