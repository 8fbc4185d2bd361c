"""CONTRIBUTING.md and docs/architecture.md: the files that they name exist."""

import re
import subprocess

import pytest
from support.documents import ROOT, Document

PAGES = [Document("CONTRIBUTING.md"), Document("docs/architecture.md")]
pages = pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)


@pages
def test_named_files_and_folders_exist(page: Document) -> None:
    names = re.findall(r"`((?:acmix_zoo|tests|tools|docs|recipes|examples)/[\w./]*)`", page.text)
    assert len(names) > 5
    assert not [name for name in names if "NAME" not in name and "GROUP" not in name and not (ROOT / name).exists()]


@pages
def test_links_lead_somewhere(page: Document) -> None:
    assert not page.missing_links()


def test_the_targets_of_make_exist() -> None:
    targets = set(re.findall(r"`?make ([\w-]+)`?", PAGES[0].text))
    assert {"demo", "test", "test-slow", "bench", "readme"} <= targets
    subprocess.run(["make", "-n", *sorted(targets)], check=True, capture_output=True, cwd=ROOT)


def test_no_word_has_two_entries_in_the_glossary() -> None:
    words = re.findall(r"^\| \*(.*?)\* \|", PAGES[0].text, re.MULTILINE)
    words = [word for entry in words for word in re.split(r"\*[,;] \*", entry)]
    assert len(words) > 20 and len(words) == len(set(words))
