"""The command `acmix-zoo pull`: download weights from the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import hub


def pull(arguments: Sequence[str]) -> None:
    """Download a weight folder from the Hub.

    Raises:
        FileNotFoundError, FileExistsError, PermissionError, ConnectionError, ValueError: as `acmix_zoo.weights.pull`.
    """
    parser = Parser("acmix-zoo pull", description="Download a weight folder from the Hugging Face Hub.")
    parser.add_argument("name", metavar="ORG/NAME[@REVISION]", help="the repository, with a branch, tag or commit")
    parser.add_argument("folder", type=Path, nargs="?", help="output folder (default: NAME, in the working directory)")
    options = parser.parse_args(arguments)
    print(f"{hub.pull(options.name, options.folder)}: verified")
