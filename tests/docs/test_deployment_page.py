"""docs/deployment.md: its snippets and commands run."""

import numpy as np
import pytest
from support.documents import Document, Reader

PAGE = Document("docs/deployment.md")


ONNX = [snippet for snippet in PAGE.blocks("python") if "onnx" in snippet]  # takes half a minute
OTHERS = [snippet for snippet in PAGE.blocks("python") if snippet not in ONNX]


@pytest.mark.slow
def test_the_exported_model_accepts_other_sizes(reader: Reader) -> None:
    (snippet,) = ONNX
    reader.python(snippet)
    session = pytest.importorskip("onnxruntime").InferenceSession(str(reader.folder / "model.onnx"))
    (images,) = session.get_inputs()
    (logits,) = session.run(None, {images.name: np.zeros((3, 3, 48, 40), np.float32)})
    assert logits.shape == (3, 10)


@pytest.mark.parametrize("snippet", OTHERS, ids=lambda snippet: snippet.splitlines()[-1].strip())
def test_snippets_run(snippet: str, reader: Reader) -> None:
    reader.python(snippet)


@pytest.mark.slow
def test_commands_run(reader: Reader) -> None:
    (bench,) = PAGE.commands()
    printed = reader.acmix_zoo(*bench[1:], "--repeats", "1", "--no-memory")
    assert printed.code == 0, printed.err
    assert (reader.folder / "speed.csv").is_file() and (reader.folder / "speed.png").is_file()
