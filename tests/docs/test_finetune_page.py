"""docs/finetune.md: commands run in order and print what is shown, and the options to try are accepted."""

import re

import pytest
from support.clothing import UNPACK
from support.documents import Document, Reader, lines_not_printed

PAGE = Document("docs/finetune.md")
TO_TRY = PAGE.text.partition("## If the result is not good enough")[2]


def test_commands_run_in_order(reader: Reader) -> None:
    commands = [words[1:] for words in PAGE.commands() if words != UNPACK]
    assert [words[0] for words in commands] == ["train", "classify", "validate", "predict"]
    for words in commands:
        printed = reader.acmix_zoo(*words)
        assert printed.code == 0, f"{words}\n{printed.out}\n{printed.err}"
        assert printed.out


def test_train_prints_what_is_shown(reader: Reader) -> None:
    train = next(words[1:] for words in PAGE.commands() if words[1] == "train")
    (shown,) = re.findall(r"^```\n(data: .*?)^```$", PAGE.text, re.DOTALL | re.MULTILINE)
    assert not lines_not_printed(shown.splitlines(), reader.acmix_zoo(*train).out)


@pytest.mark.slow
@pytest.mark.parametrize("options", re.findall(r"`(--(?!model|from|size)[^`]+)`", TO_TRY))
def test_options_to_try_are_accepted(options: str, reader: Reader) -> None:
    printed = reader.acmix_zoo("train", "clothing", "--out", f"runs/{len(options)}", *options.split())
    assert printed.code == 0, printed.err
