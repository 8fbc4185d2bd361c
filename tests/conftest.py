"""What every test shares: no network, one thread a process (xdist brings the parallelism), the real images."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub at import: a missing file is an error at once
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

import pytest
import torch

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def fashion_mnist() -> str:
    """The source name; the test is skipped when Debian's dataset-fashion-mnist is not installed."""
    from acmix_zoo.data import open_source

    try:
        open_source("fashion_mnist")
    except FileNotFoundError as error:
        pytest.skip(str(error))
    return "fashion_mnist"


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Tests marked `gpu` run where there is one."""
    if not torch.cuda.is_available():
        for item in items:
            if "gpu" in item.keywords:
                item.add_marker(pytest.mark.skip(reason="no GPU"))
