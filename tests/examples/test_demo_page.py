"""Names that the user has chosen appear literally in the page of the demo."""

from pathlib import Path

import pytest

pytest.importorskip("matplotlib")

from examples.demo_page import write_html


def test_names_with_markup_are_escaped(tmp_path: Path) -> None:
    name = "<b>5 & 10</b>"
    page = write_html(tmp_path / "page.html", name, [(name, name), ("", [[name, "top-1"], [name, "50 %"]])])
    text = page.read_text(encoding="utf-8")
    assert "<b>" not in text and text.count("&lt;b&gt;") == 6
