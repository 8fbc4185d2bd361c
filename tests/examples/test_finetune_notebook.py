"""examples/finetune_folder.ipynb runs from the first cell to the last, on a few photographs and for one epoch."""

import os
import sys
from pathlib import Path

import pytest
from support.clothing import write_clothing
from support.documents import ROOT

NOTEBOOK = ROOT / "examples/finetune_folder.ipynb"
OPTIONS = "--epochs {EPOCHS}"
SHORT = "--epochs 1 --model acmix_pvt_pico"  # writing the ONNX file of the recipe's network would take a minute


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    for name in ("ipykernel", "onnxruntime", "onnxscript"):
        pytest.importorskip(name)
    write_clothing(tmp_path / "clothing.zip", images=6)
    script = tmp_path / "bin/acmix-zoo"  # the command of this clone, which need not be installed
    script.parent.mkdir()
    script.write_text(f'#!/bin/sh\nexec {sys.executable} -m acmix_zoo.cli "$@"\n')
    script.chmod(0o755)
    monkeypatch.setenv("PATH", f"{script.parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    (training,) = (cell for cell in notebook.cells if OPTIONS in cell.source)
    training.source = training.source.replace(OPTIONS, SHORT)
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    shown = [output for output in outputs if "image/png" in output.get("data", {})]
    assert len(shown) == 3  # curves, mistakes, and contributions
    printed = "".join(output.get("text", "") for output in outputs)
    assert "Saved best weights (epoch 1) to runs/clothing/weights" in printed and "Saved clothing.onnx" in printed
    assert (tmp_path / "explained/explanation.html").is_file() and (tmp_path / "clothing.onnx").is_file()
