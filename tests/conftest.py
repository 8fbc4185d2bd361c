"""Fixtures and settings for all tests: no network, one thread per process (xdist runs several), and real images."""

import csv
import os
import sys

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # huggingface_hub reads it at import; a missing file is an error at once
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch refuses deterministic matrix products

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from hypothesis import settings
from support.hub_server import Hub

if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")  # Triton's kernels run in Python; Triton reads it at import
torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # TF32 is on by default; float32 convolutions on a GPU would only keep ten bits

# The same examples in every run, so that a failure is due to a change. `--hypothesis-profile default` draws new ones.
settings.register_profile("same_examples", derandomize=True)
settings.load_profile("same_examples")


@pytest.fixture(scope="session")
def fashion_mnist() -> str:
    """Return the name of the data source. Skip the test if Debian's dataset-fashion-mnist is not installed."""
    from acmix_zoo.data import open_source

    try:
        open_source("fashion_mnist")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return "fashion_mnist"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """Start a local Hub and point the client of this process to it, with an empty cache, a token and no waiting."""
    with Hub() as server:
        template = server.url + "/{repo_id}/resolve/{revision}/{filename}"
        for name, value in {
            "ENDPOINT": server.url, "HUGGINGFACE_CO_URL_TEMPLATE": template, "HF_HUB_OFFLINE": False,
            "HF_HUB_CACHE": str(tmp_path / "hf"),
        }.items():  # fmt: skip
            monkeypatch.setattr(constants, name, value)
        monkeypatch.setenv("HF_TOKEN", "hf_write")
        monkeypatch.setattr("time.sleep", lambda seconds: None)
        yield server


@pytest.fixture
def image_folder(tmp_path: Path) -> Path:
    """Write a small image folder with three classes, which a short training run learns."""
    from support.training import make_image_folder

    return make_image_folder(tmp_path / "images")


@pytest.fixture(scope="session")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return an image folder with train/ and test/ of three classes."""
    from support.training import make_image_folder

    folder = tmp_path_factory.mktemp("photos") / "photos"
    make_image_folder(folder / "train")
    make_image_folder(folder / "test", per_class=4)
    return folder


@pytest.fixture(scope="session")
def photo_run(photos: Path) -> Path:
    """Return a finished run next to the photos, which was started in their folder with relative paths."""
    from support.training import fit_arguments

    from acmix_zoo.cli.main import main

    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(photos.parent)
        assert main(fit_arguments(Path("photos"), Path("runs/x"), ckpt_path="last")) == 0
    return photos.parent / "runs/x"


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Run the test on each device."""
    return str(request.param)


@pytest.fixture
def python_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the native library support no layer, for tests that observe PyTorch's operators."""
    for module in ("acmix_zoo.ops.acmix", "acmix_zoo.ops.backends.native.window"):
        monkeypatch.setattr(f"{module}.unsupported_reason", lambda *args: "a test observes the Python backend")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


@pytest.fixture(autouse=True)
def _forget_compiled_code() -> Iterator[None]:
    """Reset torch.compile after each test, because a function is compiled at most eight times per process."""
    yield
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Return a function that adds a row, a test and its result, to the table of `make test-distributed`."""
    rows = request.config.stash.setdefault(FIGURES, [])
    return lambda name, result: rows.append((name, result))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(FIGURES, [])
    if rows and os.environ.get("ACMIX_RECORD"):  # for docs/training.md
        with (Path(__file__).parents[1] / "benchmarks/distributed.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("test", "result"), *rows])
    if rows:
        width = max(len(name) for name, _ in rows)
        terminalreporter.section("results")
        for name, result in rows:
            terminalreporter.write_line(f"{name.ljust(width)}  {result}")


SLOW_TIMEOUT = 900  # seconds for a test marked `slow` or `distributed`, unless it sets its own timeout


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Check the ids of the tests, skip tests marked `gpu` where there is none, and give slow tests more time."""
    for item in items:
        is_slow = any(item.get_closest_marker(name) for name in ("slow", "distributed"))
        if is_slow and not item.get_closest_marker("timeout"):
            item.add_marker(pytest.mark.timeout(SLOW_TIMEOUT))
    # an id with a memory address differs between the workers of xdist
    if addresses := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"set the ids of these parameters (ids=...): {addresses}")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not `item.keywords`, which also contains folder names
                item.add_marker(pytest.mark.skip(reason="no GPU"))
