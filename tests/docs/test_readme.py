"""README.md and its Chinese version: commands and snippets run and print what they say, and both stay short.

Both contain the same commands and snippets (`test_both_have_the_same_code_and_tables`), so only those of one are run.
"""

import os
import re
import subprocess
import sys
import tomllib
from xml.etree import ElementTree

import pytest
from support.clothing import UNPACK
from support.documents import ROOT, Document, Reader, lines_not_printed

README, CHINESE = Document("README.md"), Document("README.zh-CN.md")
READMES = [pytest.param(README, id="english"), pytest.param(CHINESE, id="chinese")]


@pytest.mark.parametrize("readme", READMES)
def test_it_can_be_read_in_three_minutes(readme: Document) -> None:
    assert len(readme.text.splitlines()) <= 150


def test_both_have_the_same_code_and_tables() -> None:
    """Only comments are translated."""

    def code(readme: Document) -> list[str]:
        blocks = re.findall(r"^```\w+\n.*?^```$", readme.text, re.DOTALL | re.MULTILINE)
        return [re.sub(r"  # .*", "", block) for block in blocks]

    def tables(readme: Document) -> list[str]:
        return re.findall(r"^<!-- (\w+) -->\n(.*?)^<!-- /\1 -->$", readme.text, re.DOTALL | re.MULTILINE)

    assert len(code(README)) >= 5 and code(README) == code(CHINESE)
    assert len(tables(README)) == 3 and tables(README) == tables(CHINESE)


def test_both_have_the_same_sections_and_link_to_each_other() -> None:
    def levels(readme: Document) -> list[str]:
        return re.findall(r"^(#+) ", re.sub(r"^```.*?^```$", "", readme.text, flags=re.DOTALL | re.MULTILINE), re.M)

    assert levels(README) == levels(CHINESE)
    for readme, other in ((README, CHINESE), (CHINESE, README)):
        assert f"]({other.path})" in "".join(readme.text.splitlines()[:4])


def test_the_first_snippet_labels_an_image_in_a_fresh_interpreter_without_a_network() -> None:
    snippet = README.blocks("python")[0]
    environment = {**os.environ, "https_proxy": "http://127.0.0.1:9", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(
        [sys.executable, "-c", snippet], check=True, capture_output=True, text=True, cwd=ROOT, env=environment
    )
    shown = re.search(r"# (sandal): ([\d.]+)%$", snippet, re.MULTILINE)
    printed = re.fullmatch(r"(.*): ([\d.]+)%\n", done.stdout)
    assert shown and printed and shown[1] == printed[1]
    assert abs(float(shown[2]) - float(printed[2])) <= 0.2  # other processors round differently


@pytest.mark.parametrize("snippet", README.blocks("python")[1:], ids=lambda snippet: snippet.splitlines()[-1])
def test_snippets_run(snippet: str, reader: Reader, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCH_HOME", str(reader.folder))
    assert reader.python(snippet)  # each one prints something


class TestCommands:
    def test_fine_tuning_prints_what_is_shown(self, reader: Reader) -> None:
        """The lines are the same, except for numbers and the predicted classes."""
        (block,) = README.blocks("console")
        _, train, classify = re.split(r"^(?=\$ )", block, flags=re.MULTILINE)[1:]
        for shown in (train, classify):
            command, *lines = shown.splitlines()
            printed = reader.acmix_zoo(*command.removeprefix("$ acmix-zoo ").split())
            assert printed.code == 0, printed.err
            is_prediction = re.compile(r" +\d+\.\d %  [\w-]+").fullmatch
            others = [line for line in lines if not is_prediction(line)]
            assert len(lines) >= 3 and not lines_not_printed(others, printed.out)
            predictions = [line for line in printed.out.splitlines() if is_prediction(line)]
            assert len(predictions) == len(lines) - len(others)

    @pytest.mark.parametrize("readme", READMES)
    def test_the_others_install_and_unpack(self, readme: Document) -> None:
        """The wheel that it installs is tested in tests/test_house.py."""
        others = [words for words in readme.commands() if words[0] != "acmix-zoo"]
        assert others == [["pip", "install", ".[train]"], UNPACK]
        project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
        assert "train" in project["optional-dependencies"]

    def test_the_targets_of_make_exist(self, reader: Reader) -> None:
        targets = {target for readme in (README, CHINESE) for target in re.findall(r"`make ([\w-]+)`", readme.text)}
        assert {"demo", "test"} <= targets
        for target in targets:
            done = subprocess.run(["make", "-n", target], check=True, capture_output=True, text=True, cwd=reader.folder)
            assert ".venv/bin/python -m" in done.stdout


def test_the_drawing_of_the_idea_has_colours_for_light_and_dark() -> None:
    text = (ROOT / "docs/images/acmix.svg").read_text(encoding="utf-8")
    ElementTree.fromstring(text)
    light, dark = text.split("prefers-color-scheme: dark")
    classes = set(re.findall(r"\.(\w+) \{ (?:fill|stroke): #", light))
    assert classes and classes == set(re.findall(r"\.(\w+) \{ (?:fill|stroke): #", dark.split("</style>")[0]))
