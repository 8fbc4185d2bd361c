"""docs/start.md, layer.md and zoo.md: commands run in order, and snippets run."""

import pytest
from support.clothing import UNPACK
from support.documents import Document, Reader, lines_not_printed

START, LAYER, ZOO = (Document(f"docs/{name}.md") for name in ("start", "layer", "zoo"))


def test_classify_prints_what_is_shown(reader: Reader) -> None:
    command, *lines = START.blocks("console")[0].splitlines()
    printed = reader.acmix_zoo(*command.removeprefix("$ acmix-zoo ").split())
    assert printed.code == 0, printed.err
    assert len(lines) == 4 and not lines_not_printed(lines, printed.out)


@pytest.mark.slow
def test_commands_run_in_order(reader: Reader) -> None:
    pytest.importorskip("onnxruntime")
    pip, *commands = START.commands()
    assert pip[:2] == ["pip", "install"] and [words[1] for words in commands].count("train") == 1
    commands.remove(UNPACK)
    for words in commands:
        printed = reader.acmix_zoo(*words[1:])
        assert printed.code == 0, f"{words}\n{printed.out}\n{printed.err}"
    assert (reader.folder / "explained/sandals/explanation.html").is_file()
    assert (reader.folder / "clothing.onnx").is_file()


@pytest.mark.parametrize(
    "snippet", [*LAYER.blocks("python"), *ZOO.blocks("python")], ids=lambda snippet: snippet.splitlines()[-1]
)
def test_snippets_run(snippet: str, reader: Reader) -> None:
    assert reader.python(snippet)
