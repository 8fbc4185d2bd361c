"""Trained runs that several files use."""

import shutil
from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def runs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a folder with images/, a run `stopped` in its second epoch, and a finished run `finished`."""
    from support.training import CrashInSecondEpoch, callback_option, make_image_folder, resume_command

    from acmix_zoo.cli.main import main

    folder = tmp_path_factory.mktemp("runs")
    make_image_folder(folder / "images")
    assert main(resume_command(folder, "stopped", trainer__callbacks=callback_option(CrashInSecondEpoch))) == 1
    assert main(resume_command(folder, "finished")) == 0
    return folder


@pytest.fixture
def runs_copy(runs: Path, tmp_path: Path) -> Path:
    """Return a copy of the runs that a test may change. The images are not copied but linked."""
    copy = tmp_path / "runs"
    for run in ("stopped", "finished"):
        shutil.copytree(runs / run, copy / run)
    (copy / "images").symlink_to(runs / "images")
    return copy
