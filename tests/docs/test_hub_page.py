"""docs/hub.md: its terminal recordings are what the commands print, and its snippets run.

    ACMIX_RECORD=1 python -m pytest tests/test_docs_hub.py

writes the recordings anew.
"""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
import timm
import torch
from support.hub_server import Hub

pytest.importorskip("lightning")

from acmix_zoo.data import export_folder

ROOT = Path(__file__).resolve().parents[2]
PAGE = ROOT / "docs" / "hub.md"
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Where a reader of the page might stand: with a run, and a checkpoint of their own."""
    folder = tmp_path_factory.mktemp("reader")
    export_folder("digits", folder / "photos", per_class={"train": 12})
    torch.manual_seed(0)
    torch.save(timm.create_model("acmix_resnet_pico", num_classes=4).state_dict(), folder / "network.pth")
    options = {
        "config": ROOT / "recipes" / "finetune" / "folder.yaml", "data.source": "photos", "run.folder": "runs/photos",
        "trainer.max_epochs": 1, "trainer.accelerator": "cpu", "trainer.limit_train_batches": 2,
    }  # fmt: skip
    run(["fit", *(f"--{key}={value}" for key, value in options.items())], folder, {})
    return folder


def run(arguments: list[str], cwd: Path, environment: dict[str, str]) -> str:
    """What a command prints; where it fails, what it says is part of the page."""
    done = subprocess.run(
        [sys.executable, "-m", "acmix_zoo.cli", *arguments], cwd=cwd, capture_output=True, text=True,
        env={**os.environ, "HF_HUB_DISABLE_PROGRESS_BARS": "1", "PYTHONWARNINGS": "ignore", **environment},
    )  # fmt: skip
    said = [line for line in done.stderr.splitlines() if "acmix-zoo:" in line or "VERIFIED" in line]
    assert done.returncode == 0 or said, done.stderr
    return done.stdout + "".join(f"{line}\n" for line in said)


def steady(text: str, url: str, place: Path) -> str:
    """Without what differs from one recording to the next: addresses, hashes of what was trained a moment ago."""
    text = text.replace(url, "https://huggingface.co").replace(f"{place}/", "")
    text = re.sub(r"/commit/[0-9a-f]{40}", "/commit/…", text)
    # Another processor may round one image the other way; `verify` itself says whether the difference matters.
    text = re.sub(r"[\d.]+ % measured, ([\d.]+) % recorded", r"\1 % measured, \1 % recorded", text)
    return re.sub(r"((?:photos|pulled).*sha256) [0-9a-f]{12}", r"\1 0123456789ab", text)


def test_recordings(place: Path, tmp_path: Path, fashion_mnist: str) -> None:
    text = PAGE.read_text(encoding="utf-8")
    with Hub() as hub:
        environment = {
            "HF_ENDPOINT": hub.url, "HF_HUB_OFFLINE": "0", "HF_TOKEN": "hf_write", "HF_HOME": str(tmp_path / "hf"),
            "TORCH_HOME": str(tmp_path / "torch"),
        }  # fmt: skip

        def record(block: re.Match[str]) -> str:
            commands = [line for line in block[0].splitlines() if line.startswith("$ ")]
            return "".join(
                f"{line}\n{steady(run(shlex.split(line)[2:], place, environment), hub.url, place)}" for line in commands
            )

        recorded = BLOCK.sub(record, text)
    if os.environ.get("ACMIX_RECORD"):
        PAGE.write_text(recorded, encoding="utf-8")
    assert recorded == PAGE.read_text(encoding="utf-8"), (
        "docs/hub.md is stale: ACMIX_RECORD=1 pytest tests/test_docs_hub.py"
    )
    verbs = {line.split()[2] for line in re.findall(r"^\$ .*", text, re.MULTILINE)}
    assert verbs == {"list", "verify", "export", "convert", "push", "pull"}


@pytest.mark.parametrize("snippet", re.findall(r"^```python\n(.*?)^```$", PAGE.read_text(), re.DOTALL | re.MULTILINE))
def test_snippets(snippet: str) -> None:
    subprocess.run([sys.executable, "-c", snippet], check=True, cwd=ROOT)
