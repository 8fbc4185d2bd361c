"""CONTRIBUTING.md and docs/architecture.md: the files that they name exist, and the example of a layer works."""

import os
import re
import subprocess
import sys
import textwrap
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.fx
from support.documents import ROOT, Document
from torch import nn

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.stages import stage_table

PAGES = [Document("CONTRIBUTING.md"), Document("docs/architecture.md")]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)


@pages
def test_named_files_and_folders_exist(page: Document) -> None:
    names = re.findall(r"`((?:acmix_zoo|tests|tools|docs|recipes|examples)/[\w./]*)`", page.text)
    assert len(names) > 5
    assert not [name for name in names if "NAME" not in name and "GROUP" not in name and not (ROOT / name).exists()]


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"(?:`|^)make ([\w-]+)(?:`|$)", PAGES[0].text, re.MULTILINE))
    assert {"demo", "test", "test-slow", "bench", "readme"} <= targets
    subprocess.run(["make", "-n", *sorted(targets)], check=True, capture_output=True, cwd=ROOT)


@pytest.fixture
def example() -> str:
    """Return the example of a layer."""
    block = re.search(r"```python\n(.*?)```", PAGES[0].text, re.DOTALL)
    assert block
    return textwrap.dedent(block[1].rstrip(" "))


@pytest.mark.slow
def test_the_example_of_a_layer_passes_the_type_checker(example: str, tmp_path: Path) -> None:
    (tmp_path / "global_acmix.py").write_text(example)
    command = [sys.executable, "-m", "mypy", "--config-file", str(ROOT / "pyproject.toml")]
    done = subprocess.run(
        [*command, "global_acmix.py"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "MYPYPATH": str(ROOT)},
    )
    assert done.returncode == 0, done.stdout


def test_the_example_of_a_layer_is_counted_traced_and_trained(example: str) -> None:
    names: dict[str, Any] = {"__name__": "example"}
    exec(example, names)
    layer = names["GlobalACmix"](8)
    network = nn.Sequential(layer)
    table = stage_table(network, (8, 5, 6))
    assert table.total.params == (8 * 24 + 24, 8 * 27 + 8)
    assert sum(table.total.macs) == complexity(network, (8, 5, 6)).macs  # of torch's counter
    assert table.rest.params == (0, 0) and table.rest.macs == (0, 0)
    x = torch.randn(2, 8, 5, 6)
    assert torch.equal(torch.fx.symbolic_trace(network)(x), network(x))
    network(x).sum().backward()
    assert all(parameter.grad is not None for parameter in network.parameters())


def test_no_word_has_two_entries_in_the_glossary() -> None:
    words = re.findall(r"^\| \*(.*?)\* \|", PAGES[0].text, re.MULTILINE)
    words = [word for entry in words for word in re.split(r"\*[,;] \*", entry)]
    assert len(words) > 20 and len(words) == len(set(words))
