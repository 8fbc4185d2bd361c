"""docs/segmentation.md: its commands run in order, and its tables name options that exist."""

import re
from typing import Any

import pytest
from support.documents import Document, Reader
from support.tasks import write_masked_images

pytest.importorskip("segmentation_models_pytorch")

PAGE = Document("docs/segmentation.md")


@pytest.mark.slow  # tests/cli/test_tasks.py and test_evaluate.py have quick tests of the same commands
def test_commands_and_snippets_run_in_order(reader: Reader) -> None:
    write_masked_images(reader.folder / "scenes", (4, 2, 2), (64, 80))
    commands = [words[1:] for words in PAGE.commands()]
    assert [words[0] for words in commands] == ["fit", "test", "predict", "verify"]
    for words in commands:
        printed = reader.acmix_zoo(*words)
        assert printed.code == 0, f"{words}\n{printed.out}\n{printed.err}"
    assert (reader.folder / "runs/scenes/predictions.png").is_file()
    assert sorted(path.name for path in (reader.folder / "runs/scenes/predictions").iterdir()) == ["0.png", "1.png"]
    (snippet,) = PAGE.blocks("python")
    assert reader.python(snippet) == "torch.Size([1, 3, 75, 100])\n"


def test_named_options_exist(parse: Any) -> None:
    found = re.findall(r"--((?:data|model|run)\.\w+)", PAGE.text)
    settings = parse("--task=segmentation", "--model.model=test_resnet")
    assert len(set(found)) > 12 and not [name for name in found if name not in settings]
