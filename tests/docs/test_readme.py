"""Every command and every snippet of README.md runs, and its tables are not stale."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from acmix_zoo.data import export_folder
from tools.tables import render

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "README.md").read_text(encoding="utf-8")
SHORT = ["--trainer.max_epochs", "1", "--trainer.limit_train_batches", "2", "--trainer.limit_test_batches", "1"]
SHORT += ["--trainer.limit_val_batches", "1"]


def blocks(language: str) -> list[str]:
    return re.findall(rf"^```{language}\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)


COMMANDS = [line for block in blocks("bash") for line in block.splitlines()]


@pytest.fixture(scope="module")
def clone(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder that looks like a clone, with the reader's pictures in it."""
    folder = tmp_path_factory.mktemp("clone")
    for name in ("acmix_zoo", "checkpoints", "recipes", "hubconf.py", "Makefile", "pyproject.toml"):
        (folder / name).symlink_to(ROOT / name)
    (folder / "hub").mkdir()
    (folder / "hub" / "org_acmix_main").symlink_to(ROOT)
    export_folder("digits", folder / "photos", per_class={"train": 12})
    shutil.move(folder / "photos" / "train", folder / "flat")  # class folders without split folders
    (folder / "photos").rmdir()
    (folder / "flat").rename(folder / "photos")
    shutil.copy(next((folder / "photos" / "7").iterdir()), folder / "photo.png")
    return folder


def run(arguments: list[str], cwd: Path) -> str:
    # torch.hub finds the repository in its cache, as if it had been loaded before; github.com cannot be reached.
    environment = {**os.environ, "TORCH_HOME": str(cwd), "https_proxy": "http://127.0.0.1:9"}
    done = subprocess.run(arguments, cwd=cwd, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, f"{shlex.join(arguments)}\n{done.stdout}\n{done.stderr}"
    return done.stdout


@pytest.mark.parametrize("command", [c for c in COMMANDS if not c.startswith("acmix-zoo")])
def test_commands_of_make_and_pip(command: str, clone: Path, tmp_path: Path) -> None:
    words = shlex.split(command)
    if words[0] == "make":  # what the two targets do is what test_demo and this suite are
        assert ".venv/bin/python -m" in run(["make", "-n", *words[1:]], clone)
    elif words[:2] == ["pip", "install"]:
        options = ["--no-deps", "--no-build-isolation", "--disable-pip-version-check", "-q", "--target", str(tmp_path)]
        run([sys.executable, "-m", *words, *options], ROOT)
        assert (tmp_path / "acmix_zoo" / "checkpoints").is_dir()
    else:
        pytest.fail(f"README has a command that no test runs: {command}")


def test_commands_of_acmix_zoo_in_order(clone: Path, fashion_mnist: str) -> None:
    commands = [shlex.split(c) for c in COMMANDS if c.startswith("acmix-zoo")]
    assert {words[1] for words in commands} == {"fit", "classify", "bench", "info", "list", "verify", "plan"}
    for words in commands:
        short = {"fit": SHORT, "bench": ["--repeats", "1", "--no-memory"]}.get(words[1], [])
        out = run([sys.executable, "-m", "acmix_zoo.cli", *words[1:], *short], clone)
        assert out.startswith("photo.png\n") or words[1] != "classify"


@pytest.mark.parametrize("snippet", blocks("python"))
def test_snippets(snippet: str, clone: Path) -> None:
    snippet = snippet.replace("max_epochs=5", "max_epochs=1")
    run([sys.executable, "-c", snippet], clone)


PAGES = ["README.md", "docs/hub.md", "docs/reconstructions.md", "docs/decomposition.md", "docs/performance.md"]


@pytest.mark.parametrize("page", [*PAGES, pytest.param("docs/scaling.md", marks=pytest.mark.slow)])
def test_tables_are_not_stale(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    assert re.search("^<!-- .* -->$", text, re.MULTILINE)
    assert render(text) == text, f"{page} is stale: run `make readme`"


def test_files_that_it_names_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", TEXT):
        assert target.startswith("https://") or (ROOT / target).exists(), target
    for target in re.findall(r"recipes/[\w/.]+\.yaml", TEXT):
        assert (ROOT / target).exists(), target
