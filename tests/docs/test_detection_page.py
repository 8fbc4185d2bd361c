"""docs/detection.md: commands and snippets run in order on a small data set in the format of Pascal VOC."""

import re
import shutil
from pathlib import Path
from typing import Any

import pytest
from support.box_data import write_voc
from support.documents import Document, Reader, lines_not_printed

PAGE = Document("docs/detection.md")
SMALL = (
    *("--data.image_size", "48", "--data.max_size", "64", "--data.multi_scale", "null", "--model.channels", "64"),
    *("--model.model", "acmix_resnet_pico", "--model.pretrained", "false"),
)

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def reader(reader: Reader) -> Reader:
    """Return a reader with a folder `cells`."""
    boxes = [("red", (11, 6, 40, 30)), ("green", (20, 20, 50, 44))]
    splits: dict[str, Any] = {"train": [boxes] * 12, "val": [boxes] * 4, "test": [boxes[:1], boxes[1:], boxes, boxes]}
    splits["train"] = [[*boxes, ("red", (5, 5, 5, 5))], *splits["train"][1:]]
    shutil.rmtree(reader.folder / "cells", ignore_errors=True)
    write_voc(reader.folder / "cells", splits)
    return reader


def test_commands_run_in_order(reader: Reader) -> None:
    commands = [words[1:] for words in PAGE.commands()]
    assert [words[0] for words in commands] == ["fit", "test", "predict", "verify"]
    for words in commands:
        printed = reader.acmix_zoo(*words, *(SMALL if words[0] == "fit" else ()))
        assert printed.code == 0, f"{words}\n{printed.out}\n{printed.err}"
        if words[0] == "fit":
            (shown,) = re.findall(r"^```\n(data: .*?)^```$", PAGE.text, re.DOTALL | re.MULTILINE)
            assert not lines_not_printed(shown.splitlines(), printed.out)
    run = reader.folder / "runs/bccd-cells"
    assert (run / "predictions.png").stat().st_size and (run / "predictions.json").stat().st_size


def test_snippets_run(reader: Reader) -> None:
    use, train = PAGE.blocks("python")
    assert "torch.Size" in reader.python(use)
    short = train.replace(
        "max_epochs=5",
        'max_epochs=1, limit_train_batches=1, accelerator="cpu", logger=False, enable_checkpointing=False',
    )
    assert short != train
    reader.python(short)


def test_recipes_that_are_named_exist() -> None:
    for name in re.findall(r"`(detect/\w+)`", PAGE.text):
        assert (Path(__file__).parents[2] / f"recipes/{name}.yaml").is_file()
