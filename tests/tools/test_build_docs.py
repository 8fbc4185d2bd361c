"""The site: every page has a place in its navigation, all links lead somewhere, and it works without a network."""

import importlib
import inspect
import re
import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from support.documents import ROOT

from tools.build_docs import SitePages, build, notebook_markdown, public_names, reference_members

Names = list[dict[str, Any]]


def nav_pages(entries: Names) -> Iterator[str]:
    for entry in entries:
        for value in entry.values():
            if isinstance(value, str):
                yield value
            else:
                yield from nav_pages(value)


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("pages")
    SitePages(folder).write()
    return folder


def test_every_page_is_in_the_navigation(pages: Path) -> None:
    config = tomllib.loads((ROOT / "zensical.toml").read_text(encoding="utf-8"))
    listed = list(nav_pages(config["project"]["nav"]))
    written = {path.relative_to(pages).as_posix() for path in pages.rglob("*.md")}
    assert len(listed) == len(set(listed))
    assert set(listed) == {name for name in written if not name.startswith("source/")}


def test_links_of_the_copies_lead_somewhere(pages: Path) -> None:
    links = [
        (page, link)
        for page in pages.rglob("*.md")
        for link in re.findall(r"\]\((?!\w+:|#)([^)#\s]+)", page.read_text(encoding="utf-8"))
    ]
    assert len(links) > 100
    assert not [(page.name, link) for page, link in links if not (page.parent / link).is_file()]


def test_files_outside_docs_have_pages_that_show_them(pages: Path) -> None:
    text = (pages / "source/acmix_zoo/layers/acmix2d.py.md").read_text(encoding="utf-8")
    assert (ROOT / "acmix_zoo/layers/acmix2d.py").read_text(encoding="utf-8").rstrip() in text
    folder = (pages / "source/recipes/fashion_mnist.md").read_text(encoding="utf-8")
    assert "[recipes/fashion_mnist/acmix_pvt_pico.yaml](fashion_mnist/acmix_pvt_pico.yaml.md)" in folder


def test_code_is_copied_unchanged(pages: Path) -> None:
    assert (pages / "hub.md").read_text(encoding="utf-8").split("```")[1::2] == (
        (ROOT / "docs/hub.md").read_text(encoding="utf-8").split("```")[1::2]
    )


def test_a_link_that_leads_nowhere_is_an_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "read_text", lambda self, encoding: "[a](b.md)")
    with pytest.raises(FileNotFoundError, match=r"docs/hub.md links to docs/b.md"):
        SitePages(tmp_path).convert("docs/hub.md", "hub.md")


def test_the_reference_lists_every_public_name_once() -> None:
    members = reference_members()
    names = [name for found in members.values() for name in found]
    assert len(names) > 50 and len(names) == len(set(names))
    for package, exported in public_names():
        module = importlib.import_module(package)
        assert exported == [name for name in module.__all__ if not inspect.ismodule(getattr(module, name))]
        assert set(exported) <= set(names)


def test_notebooks_become_pages() -> None:
    text = notebook_markdown(ROOT / "examples/finetune_folder.ipynb")
    assert text.startswith("# ") and "```python\n" in text


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("zensical")
    pytest.importorskip("mkdocstrings_handlers")
    folder = tmp_path_factory.mktemp("built") / "site"
    build(folder)  # warnings are errors
    return folder


@pytest.mark.slow
class TestSite:
    def test_public_names_are_headings(self, site: Path) -> None:
        for package, members in reference_members().items():
            html = (site / f"reference/{package}.html").read_text(encoding="utf-8")
            ids = set(re.findall(r'id="([\w.]+)"', html))
            assert not [name for name in members if not ids & {f"{package}.{name}", f"{package}.{name}.{name}"}]

    def test_nothing_is_loaded_from_elsewhere(self, site: Path) -> None:
        tags = re.compile(
            r"<(?:script|img|iframe)\b[^>]*\bsrc=\"?(?:https?:)?//|<link\b[^>]*stylesheet[^>]*href=\"?(?:https?:)?//"
        )
        files = [*site.rglob("*.html"), *site.rglob("*.css")]
        assert len(files) > 50
        for path in files:
            text = path.read_text(encoding="utf-8")
            assert not tags.search(text) and not re.search(r"url\(\"?https?://|@import", text), path

    def test_the_search_index_contains_pages_and_docstrings(self, site: Path) -> None:
        text = (site / "search.json").read_text(encoding="utf-8")
        assert "reference/acmix_zoo.layers.html" in text and "即插即用" in text
        assert "source/acmix_zoo" not in text
