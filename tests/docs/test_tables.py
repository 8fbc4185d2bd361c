"""The generated tables of README.md and docs/ are up to date. `make readme` writes them."""

import re

import pytest
from support.documents import ROOT

from tools.tables import render

PAGES = sorted(
    path.relative_to(ROOT).as_posix()
    for path in (ROOT / "README.md", *(ROOT / "docs").glob("*.md"))
    if re.search(r"^<!-- \w+ -->$", path.read_text(encoding="utf-8"), re.MULTILINE)
)
SLOW = ("docs/scaling.md", "docs/reconstructions.md")  # count dozens of networks


def test_the_pages_with_tables_are_found() -> None:
    assert {"README.md", "docs/hub.md", "docs/training.md", "docs/decomposition.md", *SLOW} <= set(PAGES)


@pytest.mark.parametrize(
    "page", [pytest.param(page, marks=pytest.mark.slow) if page in SLOW else page for page in PAGES]
)
def test_tables_are_up_to_date(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert render(text) == text, f"{page} is out of date: run `make readme`"
