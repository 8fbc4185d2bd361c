"""The command `acmix-zoo app`: run the web page, or write a folder that runs it on the Hugging Face Hub."""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

from acmix_zoo.cli.packages import require_packages
from acmix_zoo.cli.parser import Parser

_DESCRIPTION = """\
Run a web page on which you drop an image and see what networks make of it: the most probable classes, what attention
and convolution contributed, and what the pixel that you click on attends to. It also compares two networks, and
fine-tunes one on a zip archive of class folders."""
_PACKAGES = ("gradio", "lightning", "matplotlib")


def app(arguments: Sequence[str]) -> None:
    """Run the page until Ctrl-C or SIGTERM, or write the folder of a Space.

    Raises:
        ModuleNotFoundError: gradio or a training dependency is not installed.
        ValueError, OSError: a network cannot be loaded, the port is in use, or the folder is not empty.
    """
    options = _parse(arguments)
    if options.export_space is not None:
        from acmix_zoo.app.space import write_space

        names = write_space(options.export_space, options.models)
        print(f"Saved {', '.join(names)} to {options.export_space}. Its README.md says how to publish it.")
        return
    require_packages("app", _PACKAGES, "app")

    from acmix_zoo.app.serve import serve
    from acmix_zoo.training.signals import Interrupted, ending_on_sigterm

    with suppress(Interrupted), ending_on_sigterm():
        serve(
            options.models, host=options.host, port=options.port, opens_browser=options.open, when_ready=_print_address
        )
    # Everything is deleted now. A thread that still explains an image would abort the process when Python ends it.
    sys.stdout.flush()
    os._exit(0)


def _print_address(address: str) -> None:
    print(f"The page is at {address} (press Ctrl-C to stop)", flush=True)


def _parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = Parser("acmix-zoo app", description=_DESCRIPTION, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = parser.add_argument
    add("models", nargs="*", metavar="MODEL", help="weights to choose from, besides those that ship with the package")
    add("--host", default="127.0.0.1", help="address to listen on; 0.0.0.0 lets other machines in (default: 127.0.0.1)")
    add("--port", type=int, help="port to listen on (default: the first free one from 7860)")
    add("--open", action="store_true", help="open the page in a browser")
    add(
        "--export-space", type=Path, metavar="FOLDER", help="write a folder that runs the page on the Hugging Face Hub "
        "instead",
    )  # fmt: skip
    return parser.parse_args(arguments)  # type: ignore[no-any-return]
