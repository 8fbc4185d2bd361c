"""README.md: its commands and snippets run and print what it says, and it stays short."""

import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from xml.etree import ElementTree

import pytest
from support.documents import ROOT, Document, Reader, lines_not_printed

README = Document("README.md")
LABEL_AN_IMAGE, *SNIPPETS = README.blocks("python")


def test_it_can_be_read_in_three_minutes() -> None:
    assert len(README.text.splitlines()) <= 150


def test_the_first_snippet_labels_an_image_in_a_fresh_interpreter_without_a_network() -> None:
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", LABEL_AN_IMAGE], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    shown = re.search(r"# (Ankle boot): ([\d.]+)%$", LABEL_AN_IMAGE, re.MULTILINE)
    printed = re.fullmatch(r"(.*): ([\d.]+)%\n", done.stdout)
    assert shown and printed and shown[1] == printed[1]
    assert abs(float(shown[2]) - float(printed[2])) <= 0.2  # other processors round differently


@pytest.mark.parametrize("snippet", SNIPPETS, ids=lambda snippet: snippet.splitlines()[-1])
def test_snippets_run(snippet: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(reader.folder))
    assert reader.python(snippet)  # each one prints something


class TestCommands:
    def test_fine_tuning_prints_what_is_shown(self, reader: Reader) -> None:
        """The lines are the same, except for numbers and for the classes of another data set."""
        (block,) = README.blocks("console")
        train, classify = re.split(r"^(?=\$ )", block, flags=re.MULTILINE)[1:]
        for shown in (train, classify):
            command, *lines = shown.splitlines()
            printed = reader.acmix_zoo(*command.removeprefix("$ acmix-zoo ").split())
            assert printed.code == 0, printed.err
            assert len(lines) >= 3 and not lines_not_printed(lines, printed.out)

    def test_the_others_are_for_pip(self) -> None:
        """The wheel that they install is tested in tests/test_house.py, and slowly below."""
        others = [words for words in README.commands() if words[0] != "acmix-zoo"]
        assert others == [["pip", "install", "."], ["pip", "install", ".[train]"]]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert "train" in project["optional-dependencies"]

    @pytest.mark.slow
    @pytest.mark.parametrize("what", [".", ".[train]"])
    def test_pip_installs_the_weights_too(self, what: str, tmp_path: Path) -> None:
        options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "--target", str(tmp_path)]
        subprocess.run([sys.executable, "-m", "pip", "install", what, *options], check=True, cwd=ROOT)
        assert (tmp_path / "acmix_zoo" / "checkpoints").is_dir()

    def test_the_targets_of_make_exist(self, reader: Reader) -> None:
        targets = set(re.findall(r"`make ([\w-]+)`", README.text))
        assert {"demo", "test", "test-gpu"} <= targets
        for target in targets:
            done = subprocess.run(["make", "-n", target], check=True, capture_output=True, text=True, cwd=reader.folder)
            assert ".venv/bin/python -m" in done.stdout


def test_links_lead_somewhere() -> None:
    assert not README.missing_links()


def test_the_drawing_of_the_idea_has_colours_for_light_and_dark() -> None:
    text = (ROOT / "docs/images/acmix.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    light, dark = text.split("prefers-color-scheme: dark")
    classes = set(re.findall(r"\.(\w+) \{ (?:fill|stroke): #", light))
    assert classes and classes == set(re.findall(r"\.(\w+) \{ (?:fill|stroke): #", dark.split("</style>")[0]))
