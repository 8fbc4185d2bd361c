"""Photos and a finished run that several commands use."""

from pathlib import Path

import pytest


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image folder with train/ and test/ of three classes."""
    from support.training import make_image_folder

    folder = tmp_path_factory.mktemp("photos")
    make_image_folder(folder / "train")
    make_image_folder(folder / "test", per_class=4)
    return folder


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three epochs on the photos."""
    from support.training import three_epochs

    from acmix_zoo.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(three_epochs(photos, folder, "--run.tag=colours", "--run.license=mit")) == 0
    return folder
