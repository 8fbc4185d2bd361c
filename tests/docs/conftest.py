"""Fixtures for the tests of the documents: a reader with a folder, and the parser of `acmix-zoo fit`."""

import shutil
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("lightning")

from jsonargparse import Namespace
from support.documents import ROOT, Reader

from acmix_zoo.cli.find_task import find_task
from acmix_zoo.cli.recipes import with_config_files
from acmix_zoo.cli.trainer import TrainingCLI
from acmix_zoo.data import export_folder

Parse = Callable[..., Namespace]


@pytest.fixture(scope="session")
def reader(tmp_path_factory: pytest.TempPathFactory) -> Reader:
    """Return a reader whose folder looks like a clone and has photos, which are handwritten digits."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("acmix_zoo", "checkpoints", "examples", "hubconf.py", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    # torch.hub finds the repository in its cache, as if it had been downloaded before.
    (folder / "hub").mkdir()
    (folder / "hub" / "org_acmix_main").symlink_to(ROOT)
    export_folder("digits", folder / "exported", per_class={"train": 12})
    shutil.move(folder / "exported" / "train", folder / "photos")  # class folders without folders for splits
    shutil.copy(next((folder / "photos" / "7").iterdir()), folder / "photo.png")
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
