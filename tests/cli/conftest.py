"""Finished runs that several commands use."""

from pathlib import Path

import pytest
from support.tasks import TASKS, TrainedTask, skip_without_packages


@pytest.fixture(scope="session")
def run(photos: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a finished run of three epochs on the photos."""
    from support.training import three_epochs

    from acmix_zoo.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "first"
    assert main(three_epochs(photos, folder, "--run.tag=colours", "--run.license=mit")) == 0
    return folder


@pytest.fixture(scope="session", params=TASKS, ids=lambda task: task.name)
def trained(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainedTask:
    """Return a finished run of three epochs of each task."""
    from acmix_zoo.cli.main import main

    task = request.param
    if task.name == "classification":
        return TrainedTask(task, request.getfixturevalue("photos"), request.getfixturevalue("run"))
    skip_without_packages(task)
    folder = tmp_path_factory.mktemp(task.name)
    source = task.write_data(folder / "data")
    options = {"trainer__max_epochs": 3, "model__ema_decay": 0.9, "run__tag": "shapes", "run__license": "mit"}
    assert main(task.fit(source, folder / "run", **options)) == 0
    return TrainedTask(task, source, folder / "run")
