"""What every test shares: no network, one thread a process (xdist brings the parallelism), the real images."""

import csv
import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub at import: a missing file is an error at once
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")
os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # without it PyTorch refuses deterministic matrix products

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from huggingface_hub import constants
from support.hub_server import Hub

torch.set_num_threads(1)
torch.backends.cudnn.allow_tf32 = False  # TF32 is on by default; float32 convolutions on a GPU would only keep ten bits


@pytest.fixture(scope="session")
def fashion_mnist() -> str:
    """The source name; the test is skipped when Debian's dataset-fashion-mnist is not installed."""
    from acmix_zoo.data import open_source

    try:
        open_source("fashion_mnist")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return "fashion_mnist"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    """The client's address, cache and token, for this process; no waiting between tries."""
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


@pytest.fixture(params=["cpu", pytest.param("cuda", marks=pytest.mark.gpu)])
def device(request: pytest.FixtureRequest) -> str:
    """Each device that the test runs on."""
    return str(request.param)


@pytest.fixture
def python_backend(monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the native library refuse every layer, for tests that observe PyTorch's operators."""
    monkeypatch.setattr("acmix_zoo.ops.acmix.refusal", lambda *args: "a test observes the Python backend")


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


FIGURES = pytest.StashKey[list[tuple[str, str]]]()


@pytest.fixture
def figure(request: pytest.FixtureRequest) -> Callable[[str, str], None]:
    """Put a line into the table that `make test-distributed` ends with: what was shown, and the figures."""
    rows = request.config.stash.setdefault(FIGURES, [])
    return lambda what, figures: rows.append((what, figures))


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    rows = config.stash.get(FIGURES, [])
    if rows and os.environ.get("ACMIX_RECORD"):  # for docs/training.md
        with (Path(__file__).parents[1] / "benchmarks/distributed.csv").open("w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([("shown", "figures"), *rows])
    if rows:
        width = max(len(what) for what, _ in rows)
        terminalreporter.section("shown, with figures")
        for what, figures in rows:
            terminalreporter.write_line(f"{what.ljust(width)}  {figures}")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one; an id that holds an address differs between xdist's workers."""
    if addresses := [item.nodeid for item in items if " at 0x" in item.nodeid]:
        raise pytest.UsageError(f"give these parameters a name of their own (ids=...): {addresses}")
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):  # not `item.keywords`, which also contains folder names
                item.add_marker(pytest.mark.skip(reason="no GPU"))
