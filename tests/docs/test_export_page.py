"""docs/export.md: its commands print what is shown, and its programs give the result of `acmix-zoo classify`."""

import json
import re
import subprocess
import sys

import pytest
from support.documents import ROOT, Document, Reader, lines_not_printed

PAGE, SHOE = Document("docs/export.md"), "clothing/test/shoes/01.jpg"


def test_the_page_matches_the_command() -> None:
    """Quick checks of what the slow test runs."""
    formats = {words[3].rpartition(".")[2] for words in PAGE.commands()}
    assert formats == {"onnx", "pt2"} and all(words[:2] == ["acmix-zoo", "export"] for words in PAGE.commands())
    onnx, program = PAGE.blocks("python")
    assert len(onnx.splitlines()) <= 18 and "torch" not in onnx and "acmix" not in onnx
    assert "acmix" not in program and "timm" not in program


@pytest.mark.slow
def test_commands_and_programs_in_order(other_reader: Reader) -> None:
    pytest.importorskip("onnxruntime")
    pytest.importorskip("onnxscript")
    # PVT is the network that is exported fastest, and it takes any size like the others
    assert other_reader.acmix_zoo("train", "clothing", "--model=acmix_pvt_pico.fashion_mnist").code == 0
    for block in PAGE.blocks("console"):
        command, *lines = block.splitlines()
        printed = other_reader.acmix_zoo(*command.removeprefix("$ acmix-zoo ").split())
        assert printed.code == 0, printed.err
        assert not lines_not_printed(lines, printed.out)
    onnx, program = PAGE.blocks("python")
    other_reader.python(program)

    without_torch = "import sys\nsys.modules['torch'] = None\n" + onnx + "print(list(map(float, logits[0])))"
    done = subprocess.run(
        [sys.executable, "-c", without_torch], check=True, capture_output=True, text=True, cwd=other_reader.folder
    )
    name, logits = done.stdout.splitlines()
    classes = json.loads(other_reader.acmix_zoo("classify", SHOE, "--model=runs/clothing", "--json").out)
    best, second, *_ = classes[0]["classes"]
    assert best["description"] == name
    first, next_one, *_ = sorted(json.loads(logits), reverse=True)
    assert best["probability"] / second["probability"] == pytest.approx(2.718281828 ** (first - next_one), rel=1e-3)


def test_the_table_of_int8_accuracies_names_shipped_weights() -> None:
    names = re.findall(r"^\| `([\w.]+)` \|", PAGE.text, re.MULTILINE)
    assert names and all((ROOT / "checkpoints" / name).is_dir() for name in names)
