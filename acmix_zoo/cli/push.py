"""The command `acmix-zoo push`: publish weights on the Hugging Face Hub."""

from __future__ import annotations

from collections.abc import Sequence

from acmix_zoo.cli.parser import Parser
from acmix_zoo.weights import hub


def push(arguments: Sequence[str]) -> None:
    """Publish a weight folder on the Hub, and print the address of the commit.

    Raises:
        ValueError, PermissionError, ConnectionError: as `acmix_zoo.weights.push`.
    """
    parser = Parser("acmix-zoo push", description="Publish a weight folder on the Hugging Face Hub.")
    parser.add_argument("folder", help="weight folder or run folder")
    parser.add_argument("name", metavar="ORG/NAME", help="the repository, which is created if necessary")
    parser.add_argument("--private", action="store_true", help="make a new repository private")
    parser.add_argument("--revision", help="branch to commit to, created if necessary (default: the main branch)")
    options = parser.parse_args(arguments)
    print(hub.push(options.folder, options.name, private=options.private, revision=options.revision))
