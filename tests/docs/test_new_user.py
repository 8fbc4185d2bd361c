"""The walk of a new user: from the README to a network for a folder of photographs that others can download."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from urllib.request import urlopen
from zipfile import ZipFile

import pytest
from support.clothing import write_clothing
from support.documents import ROOT, Document, Reader
from support.hub_server import Hub
from support.web_page import running_app

README, EXPORT = Document("README.md"), Document("docs/export.md")
SMALL = ["--model", "acmix_pvt_pico"]  # writing the ONNX file of the recipe's network would take a minute
FILES = {"weights", "curves.png", "augmented.png", "test/classes.csv", "test/confusion.png", "test/mistakes.png"}


@pytest.fixture
def user(tmp_path: Path) -> Reader:
    """Return a reader with a few photographs of clothing."""
    with ZipFile(write_clothing(tmp_path / "clothing.zip", images=6)) as archive:
        archive.extractall(tmp_path)
    (tmp_path / "examples").symlink_to(ROOT / "examples")
    return Reader(tmp_path)


def run(user: Reader, *words: str) -> str:
    """Return what a command prints, after checking that it succeeds."""
    printed = user.acmix_zoo(*words)
    assert printed.code == 0, f"{shlex.join(words)}\n{printed.out}\n{printed.err}"
    return printed.out


@pytest.mark.slow
def test_from_the_readme_to_shared_weights(user: Reader, hub: Hub, subtests: pytest.Subtests) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    assert user.python(README.blocks("python")[0]).startswith("sandal: ")

    train, classify = (words[1:] for words in README.commands() if words[0] == "acmix-zoo")
    out = run(user, *train, *SMALL)
    folder = user.folder / "runs/clothing"
    listed = re.search(r"^Files in runs/clothing:\n((?:  .*\n)+)", out, re.MULTILINE)
    assert listed
    files = [line.split()[0] for line in listed[1].splitlines()]
    assert set(files) >= FILES and all((folder / name).exists() for name in files)
    assert re.search(r"^(dress|shoes) +6 ", out, re.MULTILINE), "the scores of each class on the test photographs"

    suggested = [shlex.split(line) for line in re.findall(r"^  acmix-zoo (.*)$", out.partition("\nNext:\n")[2], re.M)]
    assert [words[0] for words in suggested] == ["classify", "explain", "export"]
    for words in suggested:
        run(user, *words)
    assert len(list((user.folder / "explained").glob("*/explanation.html"))) == 1

    assert re.match(r"clothing/test/shoes/01\.jpg\n +\d+\.\d %  (dress|shoes)\n", run(user, *classify))
    as_json = ["classify", "clothing/test/shoes/01.jpg", "--json", "--model"]
    classes = json.loads(run(user, *as_json, "runs/clothing"))[0]["classes"]
    assert user.python(EXPORT.blocks("python")[0]) == f"{classes[0]['description']}\n"  # in onnxruntime

    assert f"{hub.url}/org/clothing/commit/" in run(user, "push", "runs/clothing", "org/clothing")
    assert json.loads(run(user, *as_json, "org/clothing"))[0]["classes"] == classes

    with subtests.test("the page"):
        pytest.importorskip("gradio", reason="the page needs gradio: pip install '.[app]'")
        with running_app(user.folder, "runs/clothing") as page, urlopen(page.address) as answer:
            assert "runs/clothing" in answer.read().decode()
