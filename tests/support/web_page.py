"""Run `acmix-zoo app` in a process of its own."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from support.documents import ROOT


class Page(NamedTuple):
    """A running page.

    Attributes:
        address: where it is.
        process: the server.
    """

    address: str
    process: subprocess.Popen[str]


@contextmanager
def running_app(folder: Path, *models: str, **environment: str) -> Iterator[Page]:
    """Run the page until the end of this context.

    Args:
        folder: the working directory.
        models: weights to choose from, besides those that are shipped.
        environment: changes of the environment.
    """
    command = [sys.executable, "-m", "acmix_zoo.cli", "app", *models]
    changed = {**os.environ, "PYTHONPATH": str(ROOT), **environment}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=changed, cwd=folder)
    assert process.stdout
    try:
        found = re.match(r"The page is at (http://127\.0\.0\.1:\d+/)", process.stdout.readline())
        assert found, "the command ended"
        yield Page(found[1], process)
    finally:
        process.kill()
        process.wait()
