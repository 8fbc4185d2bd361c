"""examples/finetune_folder.ipynb runs from the first cell to the last, on a few images per class."""

import os
import sys
from pathlib import Path

import pytest
from support.documents import ROOT

from acmix_zoo.data import export_folder

NOTEBOOK = ROOT / "examples/finetune_folder.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    nbformat, nbclient = pytest.importorskip("nbformat"), pytest.importorskip("nbclient")
    pytest.importorskip("ipykernel")
    export_folder("digits", tmp_path / "photos", per_class={"train": 8, "test": 4})
    # commands in cells are those of this environment
    monkeypatch.setenv("PATH", f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") for cell in notebook.cells)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    shown = [
        output for cell in notebook.cells for output in cell.get("outputs", []) if "image/png" in output.get("data", {})
    ]
    assert len(shown) >= 3  # curves, mistakes, and contributions
    assert (tmp_path / "explained/explanation.html").is_file() and (tmp_path / "photos.onnx").is_file()
