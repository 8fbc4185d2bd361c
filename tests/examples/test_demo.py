"""The demo with fewer images and epochs: every step runs and writes its files."""

import re
from pathlib import Path
from types import SimpleNamespace

import pytest
from support.clothing import write_clothing

from acmix_zoo import list_models
from acmix_zoo.cli.main import main
from examples import demo, demo_steps


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Return the folder of the results. There is an older one, which the demo must not touch."""
    if not list_models(f"{demo.MODEL}.*", pretrained=True):
        pytest.skip(f"no weights of {demo.MODEL} are shipped")
    monkeypatch.chdir(tmp_path)  # the demo may be run from anywhere
    (tmp_path / "runs" / "demo").mkdir(parents=True)
    (tmp_path / "runs" / "demo" / "mine.txt").write_text("an earlier result", encoding="utf-8")
    monkeypatch.setattr(demo, "PHOTOGRAPHS", write_clothing(tmp_path / "clothing.zip", images=8))
    monkeypatch.setitem(demo.OPTIONS, "trainer.max_epochs", 2)
    monkeypatch.setitem(demo.OPTIONS, "data.image_size", 32)
    return tmp_path / "runs" / "demo-2"


def check_results(folder: Path, out: str) -> None:
    assert (folder.with_name("demo") / "mine.txt").is_file() and "demo-2" in out
    for label in ("from scratch", "fine-tuned"):
        assert re.search(rf"{label} .*\d+\.\d\d %", out), label
    assert len(re.findall(r"^\S+\.jpg$", out, re.MULTILINE)) == 2  # two images classified
    assert (folder / "finetuned" / "weights" / "model.safetensors").is_file()
    report = (folder / "report.html").read_text(encoding="utf-8")
    assert report.count("data:image/png;base64,") == 3 and "fine-tuned" in report
    assert sorted(path.name for path in (folder / "plots").iterdir()) == ["confusion.png", "curves.png", "images.png"]


def test_demo(folder: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    """Its commands run in this process, since each new process would first import everything."""

    def run_here(arguments: list[str]) -> None:
        assert main(arguments) == 0

    monkeypatch.setattr(demo, "acmix_zoo_command", run_here)
    monkeypatch.setattr(demo_steps, "acmix_zoo_command", run_here)
    demo.main()
    check_results(folder, capfd.readouterr().out)


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_demo_with_processes(folder: Path, capfd: pytest.CaptureFixture[str]) -> None:
    demo.main()
    check_results(folder, capfd.readouterr().out)


def test_outside_of_a_clone(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(demo, "RECIPE", tmp_path / "recipes" / "folder.yaml")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit, match="needs a clone"):
        demo.main()
    assert not list(tmp_path.iterdir())


def test_failing_command_ends_the_demo(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(demo_steps.subprocess, "run", lambda command: SimpleNamespace(returncode=2))
    with pytest.raises(SystemExit) as ended:
        demo_steps.acmix_zoo_command(["no-such-command"])
    assert ended.value.code == 2
