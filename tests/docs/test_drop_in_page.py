"""docs/drop-in.md: its snippets run. Those for Ultralytics run in a separate process, on blood cells."""

import importlib.util
from pathlib import Path

import pytest
import yaml
from support.documents import Document, Reader
from support.ultralytics_process import DATA, run_python

from tools.yolo_study import write_data

PAGE = Document("docs/drop-in.md")
SNIPPETS = PAGE.blocks("python")
YOLO = [snippet for snippet in SNIPPETS if "ultralytics" in snippet]
LONG = [snippet for snippet in SNIPPETS if "detection" in snippet or "segmentation_models_pytorch" in snippet]


def last_line(snippet: str) -> str:
    return snippet.splitlines()[-1].strip()


@pytest.mark.parametrize(
    "snippet",
    [pytest.param(s, marks=pytest.mark.slow) if s in LONG else s for s in SNIPPETS if s not in YOLO],
    ids=lambda snippet: last_line(snippet),
)
def test_snippets_run(snippet: str, reader: Reader) -> None:
    if "segmentation_models_pytorch" in snippet:
        pytest.importorskip("segmentation_models_pytorch")
    printed = reader.python(f"{snippet}\nif 'report' in globals(): print(len(report.replaced), 'layers')")
    assert "report" not in snippet or "layers" in printed


@pytest.mark.slow
@pytest.mark.parametrize("snippet", YOLO, ids=last_line)
def test_ultralytics_trains(snippet: str, tmp_path: Path) -> None:
    if importlib.util.find_spec("ultralytics") is None or not DATA.is_dir():
        pytest.skip(f"needs ultralytics, and {DATA}: set ACMIX_DATA to a folder with bccd/")
    data = write_data(DATA, tmp_path / "data", limits={"train": 4, "val": 2, "test": 1})
    short = snippet.replace(
        'data="coco8.yaml"', f'data={str(data)!r}, imgsz=64, batch=2, workers=0, device="cpu", plots=False'
    )
    assert short != snippet
    check = "assert [m for m in yolo.model.modules() if type(m).__name__ == 'ACmix2d']"
    run_python(f"{short}\n{check}", tmp_path)


def test_rows_of_a_model_are_yaml() -> None:
    (block,) = PAGE.blocks("yaml")
    assert [row[2] for row in yaml.safe_load(block)] == ["ACmix2d", "ACmix2d"]
