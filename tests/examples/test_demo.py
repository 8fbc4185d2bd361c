"""The demo on a smaller budget: every step runs, and its report, table and files are there."""

import re
from pathlib import Path

import pytest

from acmix_zoo import list_models
from examples import demo


@pytest.fixture
def small_budget(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    if not list_models(f"{demo.MODEL}.*", pretrained=True):
        pytest.skip(f"no weights of {demo.MODEL} ship yet")
    monkeypatch.chdir(tmp_path)  # the demo may be run from anywhere
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "mine.txt").write_text("an earlier result", encoding="utf-8")
    monkeypatch.setattr(demo, "PER_CLASS", {"train": 8, "val": 4, "test": 12})
    real = demo.acmix

    def acmix(arguments: list[str]) -> None:
        real([*arguments, "--trainer.max_epochs", "2"] if arguments[0] == "fit" else arguments)

    monkeypatch.setattr(demo, "acmix", acmix)
    return tmp_path / "runs" / "demo-2"


@pytest.mark.timeout(900)  # four processes that import everything
def test_demo(small_budget: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.main()
    out = capfd.readouterr().out
    assert (small_budget.with_name("demo") / "mine.txt").is_file() and "demo-2" in out
    for label in ("before fine-tuning", "from scratch", "fine-tuned"):
        assert re.search(rf"{label} .*\d+\.\d %", out), label
    assert len(re.findall(r"^\S+\.png$", out, re.MULTILINE)) == 2  # two images classified
    assert (small_budget / "finetuned" / "weights" / "model.safetensors").is_file()
    report = (small_budget / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == 3 and "fine-tuned" in report
    pictures = sorted(path.name for path in (small_budget / "pictures").iterdir())
    assert pictures == ["confusion.png", "curves.png", "images.png"]


def test_outside_of_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "recipes" / "folder.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="needs a clone"):
        demo.main()
    assert not list(tmp_path.iterdir())
