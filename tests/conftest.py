"""What every test shares: no network, one thread a process (xdist brings the parallelism), the real images."""

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read by huggingface_hub at import: a missing file is an error at once
os.environ.setdefault("HF_HUB_DISABLE_XET", "1")
os.environ.setdefault("OMP_NUM_THREADS", "1")

from pathlib import Path

import pytest
import torch

torch.set_num_threads(1)

FASHION = Path(os.environ.get("ACMIX_DATA", "/usr/share/datasets")) / "fashion-mnist"


@pytest.fixture(scope="session")
def fashion_mnist() -> Path:
    """Folder of the idx files of Debian's dataset-fashion-mnist; the test is skipped when it is not installed."""
    if not (FASHION / "train-images-idx3-ubyte.gz").exists():
        pytest.skip("Fashion-MNIST is missing: apt-get install dataset-fashion-mnist")
    return FASHION


@pytest.fixture(autouse=True)
def _seed() -> None:
    torch.manual_seed(0)
