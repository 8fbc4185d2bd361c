"""The links of all pages lead to files and headings that exist."""

import pytest
from support.documents import ROOT, Document

FILES = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md"), ROOT / "checkpoints/README.md"]
PAGES = [Document(path.relative_to(ROOT).as_posix()) for path in sorted(FILES)]


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.path)
def test_links_lead_somewhere(page: Document) -> None:
    assert not page.missing_links()


def test_missing_files_and_headings_are_found(monkeypatch: pytest.MonkeyPatch) -> None:
    text = (
        "# A `title` of this page\n[a](b.md) [b](#a-title-of-this-page) [c](#c) [d](docs/hub.md#d) [e](https://e.org)"
    )
    monkeypatch.setattr(Document, "text", text)
    assert Document("README.md").missing_links() == ["b.md", "#c", "docs/hub.md#d"]
