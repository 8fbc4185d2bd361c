"""The scripts of `acmix-zoo completion` complete commands, options, choices and names."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from support.commands import run_command

from acmix_zoo.cli.commands import COMMANDS, RECIPE_COMMANDS
from acmix_zoo.cli.completion import completion_script


def complete(script: str, folder: Path, *words: str) -> set[str]:
    """Return what bash suggests for the last of the words after `acmix-zoo`."""
    (folder / "script.bash").write_text(script)
    line = " ".join(f'"{word}"' for word in ("acmix-zoo", *words))
    code = (
        f"source ./script.bash; COMP_WORDS=({line}); COMP_CWORD={len(words)}; "
        "_shtab_acmix_zoo; printf '%s\\n' \"${COMPREPLY[@]}\""
    )
    done = subprocess.run(["bash", "-c", code], cwd=folder, capture_output=True, text=True, check=True)
    return set(done.stdout.split())


@pytest.fixture(scope="module")
def script() -> str:
    return completion_script("bash", [name for name in COMMANDS if name not in RECIPE_COMMANDS])  # quick to build


@pytest.mark.skipif(shutil.which("bash") is None, reason="needs bash")
class TestBash:
    def test_commands(self, script: str, tmp_path: Path) -> None:
        assert complete(script, tmp_path, "p") == {"push", "pull", "plan"}

    def test_options(self, script: str, tmp_path: Path) -> None:
        assert complete(script, tmp_path, "export", "--f") == {"--format"}
        assert complete(script, tmp_path, "classify", "a.png", "--mo") == {"--model"}

    def test_choices(self, script: str, tmp_path: Path) -> None:
        assert complete(script, tmp_path, "export", "--format", "") == {"onnx", "torch-export", "folder"}
        assert complete(script, tmp_path, "completion", "z") == {"zsh"}

    def test_names_and_files(self, script: str, tmp_path: Path) -> None:
        (tmp_path / "acmix_photo.jpg").touch()
        found = complete(script, tmp_path, "info", "acmix_")
        assert {"acmix_resnet50", "acmix_resnet_pico.fashion_mnist", "acmix_photo.jpg"} <= found
        assert complete(script, tmp_path, "classify", "acmix_") == {"acmix_photo.jpg"}


@pytest.mark.parametrize("shell", ["zsh", "fish"])
def test_scripts_of_other_shells_have_the_options(shell: str) -> None:
    script = completion_script(shell, ["list", "export"])
    assert "torch-export" in script and "pretrained" in script and "list networks or weights" in script


@pytest.mark.slow
def test_training_options_are_completed(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    script = run_command(capsys, "completion", "bash")
    assert complete(script, tmp_path, "fit", "--data.image") == {"--data.image_size"}
    assert "--help-all" in complete(script, tmp_path, "predict", "--help")
    assert complete(script, tmp_path, "predict", "--data.pred") == {"--data.predict"}
    assert complete(script, tmp_path, "predict", "--thr") == {"--threshold"}
    for shell in ("zsh", "fish"):
        if shutil.which(shell):
            (tmp_path / "script").write_text(run_command(capsys, "completion", shell))
            subprocess.run([shell, "-n", str(tmp_path / "script")], check=True)
