"""What only maintainers of this project run: measurements, studies and the tables of the documentation.

Run each of them as `python -m tools.NAME` in a clone. `python -m tools.NAME --help` explains it.
"""

from __future__ import annotations

import argparse


def make_parser(name: str, description: str | None) -> argparse.ArgumentParser:
    """Return a command-line parser for `python -m tools.<name>` that prints the module's docstring as its help."""
    return argparse.ArgumentParser(
        f"python -m tools.{name}",
        description=description,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
