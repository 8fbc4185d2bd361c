"""docs/deployment.md: its snippets and commands run."""

import pytest
from support.documents import Document, Reader

PAGE = Document("docs/deployment.md")


@pytest.mark.parametrize("snippet", PAGE.blocks("python"), ids=lambda snippet: snippet.splitlines()[-1].strip())
def test_snippets_run(snippet: str, reader: Reader) -> None:
    reader.python(snippet)


def test_commands_run(reader: Reader) -> None:
    (bench,) = PAGE.commands()
    printed = reader.acmix_zoo(*bench[1:], "--repeats", "1", "--no-memory")
    assert printed.code == 0, printed.err
    assert (reader.folder / "speed.csv").is_file() and (reader.folder / "speed.png").is_file()


def test_links_lead_somewhere() -> None:
    assert not PAGE.missing_links()
