"""A weight folder for the tests of this folder."""

from pathlib import Path

import pytest
from support.weight_folders import write_weights

from acmix_zoo.weights import check_folder


@pytest.fixture(scope="module")
def written(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A weight folder that verifies, to copy and change."""
    folder = write_weights(tmp_path_factory.mktemp("written") / "weights")
    assert check_folder(folder) == []
    return folder
