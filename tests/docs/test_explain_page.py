"""docs/explain.md: its commands print what it shows, and its snippets run."""

import pytest
from support.documents import Document, Reader, lines_not_printed

PAGE = Document("docs/explain.md")
(BLOCK,) = PAGE.blocks("console")


def test_the_first_command_prints_what_is_shown(reader: Reader) -> None:
    command, *lines = BLOCK.splitlines()
    printed = reader.acmix_zoo(*command.removeprefix("$ acmix-zoo ").split())
    assert printed.code == 0, printed.err
    assert len(lines) >= 8 and not lines_not_printed(lines, printed.out)
    assert (reader.folder / "explained/ankle_boot/explanation.html").is_file()


@pytest.mark.slow
@pytest.mark.parametrize("line", PAGE.blocks("bash")[0].splitlines())
def test_the_other_commands_run(line: str, reader: Reader) -> None:
    printed = reader.acmix_zoo(*line.removeprefix("acmix-zoo ").split())
    assert printed.code == 0, printed.err


@pytest.mark.parametrize("snippet", PAGE.blocks("python"), ids=lambda snippet: snippet.splitlines()[-1].strip())
def test_snippets_run(snippet: str, reader: Reader) -> None:
    assert reader.python(snippet)
