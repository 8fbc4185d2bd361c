"""Fixtures for the tests of the documents: a reader with a folder, and the parser of `acmix-zoo fit`."""

from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any
from zipfile import ZipFile

import pytest

pytest.importorskip("lightning")

from jsonargparse import Namespace
from support.clothing import CLASSES, write_clothing
from support.documents import ROOT, Reader

from acmix_zoo.cli.find_task import find_task
from acmix_zoo.cli.recipes import with_config_files
from acmix_zoo.cli.trainer import TrainingCLI

Parse = Callable[..., Namespace]


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a reader whose folder looks like a clone with some of the photographs from examples/clothing.zip."""
    return _make_reader(tmp_path_factory.mktemp("clone"))


@pytest.fixture
def other_reader(tmp_path: Path) -> Reader:
    """Return a reader with a folder of their own, in which no other test has trained anything."""
    return _make_reader(tmp_path)


def _make_reader(folder: Path) -> Reader:
    for name in ("acmix_zoo", "checkpoints", "examples", "hubconf.py", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    # torch.hub finds the repository in its cache, as if it had been downloaded before.
    (folder / "hub").mkdir()
    (folder / "hub" / "org_acmix_main").symlink_to(ROOT)
    with ZipFile(write_clothing(folder / "clothing.zip", images=6, classes=CLASSES)) as archive:
        archive.extractall(folder)
    return Reader(folder)


class _Parsed(Exception):
    """Carries the parser out of the command line as soon as it is complete."""


@pytest.fixture(scope="session")
def parse() -> Parse:
    """Return the settings that arguments of `fit` amount to. Nothing is built."""

    class OnlyParser(TrainingCLI):
        def parse_arguments(self, parser: Any, args: Any) -> None:
            raise _Parsed(parser)

    @cache
    def make_parser(task: str) -> Any:
        with pytest.raises(_Parsed) as parsed:
            OnlyParser("", task)
        return parsed.value.args[0]

    @cache
    def settings(*arguments: str | Path) -> Namespace:
        words = ["fit", *with_config_files([str(word) for word in arguments])]
        parsed: Namespace = make_parser(find_task(words)).parse_args(words)
        return parsed.fit

    return settings
