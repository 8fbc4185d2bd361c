"""docs/hub.md: its terminal recordings are what the commands print, and its snippets run.

    ACMIX_RECORD=1 python -m pytest -m "slow or not slow" tests/docs/test_hub_page.py

writes the recordings again.
"""

import os
import re
import shlex

import pytest
import timm
import torch
from support.documents import ROOT, Document, Printed, Reader
from support.hub_server import Hub

PAGE = Document("docs/hub.md")
BLOCK = re.compile(r"(?<=^```console\n).*?(?=^```$)", re.DOTALL | re.MULTILINE)
RECORDED = [
    (command, output)
    for block in BLOCK.findall(PAGE.text)
    for command, output in re.findall(r"^\$ acmix-zoo (.*)\n((?:(?!\$ ).*\n)*)", block, re.MULTILINE)
]
LONG = [command for command, _ in RECORDED if "--data" in command]  # measures 10,000 images


@pytest.fixture
def author(reader: Reader) -> Reader:
    """A reader who has a run and a checkpoint of another project."""
    torch.manual_seed(0)
    torch.save(timm.create_model("acmix_resnet_pico", num_classes=4).state_dict(), reader.folder / "network.pth")
    assert reader.acmix_zoo("train", "clothing").code == 0
    return reader


def test_every_command_for_weights_is_shown() -> None:
    assert {command.split()[0] for command, _ in RECORDED} == {"list", "verify", "export", "convert", "push", "pull"}


def test_recordings(author: Reader, hub: Hub) -> None:
    """Commands run in order, because later ones use files of earlier ones."""
    printed = {command: record(command, author, hub) for command, _ in RECORDED if command not in LONG}
    if os.environ.get("ACMIX_RECORD"):
        write(printed)
    for command, output in RECORDED:
        if command not in LONG:
            assert printed[command] == output, f"`{command}` prints something else; record the page again"


@pytest.mark.slow
@pytest.mark.parametrize("command", LONG)
def test_long_recordings(command: str, author: Reader, hub: Hub, fashion_mnist: str) -> None:
    printed = record(command, author, hub)
    if os.environ.get("ACMIX_RECORD"):
        write({command: printed})
    assert printed == dict(RECORDED)[command], f"`{command}` prints something else; record the page again"


@pytest.mark.parametrize("snippet", PAGE.blocks("python"), ids=lambda snippet: snippet.splitlines()[-1])
def test_snippets_run(snippet: str, reader: Reader) -> None:
    reader.python(snippet)


def record(command: str, author: Reader, hub: Hub) -> str:
    """Run a command, and return its output and errors without the parts that differ from run to run."""
    printed: Printed = author.acmix_zoo(*shlex.split(command))
    errors = [line for line in printed.err.splitlines() if line.startswith("acmix-zoo:")]
    assert printed.code == 0 or errors, printed.err
    text = printed.out + "".join(f"{line}\n" for line in errors)
    text = text.replace(hub.url, "https://huggingface.co").replace(f"{author.folder}/", "")
    text = re.sub(r"/commit/[0-9a-f]{40}", "/commit/…", text)
    # Another processor may classify one image differently. `verify` itself reports whether the difference matters.
    text = re.sub(r"[\d.]+ % measured, ([\d.]+) % recorded", r"\1 % measured, \1 % recorded", text)
    return re.sub(r"((?:clothing|pulled).*sha256) [0-9a-f]{12}", r"\1 0123456789ab", text)


def write(printed: dict[str, str]) -> None:
    """Replace the outputs of commands in the page."""
    text = PAGE.text
    for command, output in RECORDED:
        if command in printed:
            text = text.replace(f"$ acmix-zoo {command}\n{output}", f"$ acmix-zoo {command}\n{printed[command]}", 1)
    (ROOT / PAGE.path).write_text(text, encoding="utf-8")
