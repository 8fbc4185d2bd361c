"""`acmix-zoo app`: what it needs, and writing a Space. tests/app opens the page in a browser."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path

import pytest
from support.commands import assert_fails, run_command

from acmix_zoo.cli import packages


def test_a_missing_package_is_one_line_with_the_command_that_installs_it(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None if name == "gradio" else find_spec(name))
    assert_fails(["app"], capsys, "app needs gradio", "pip install 'acmix-zoo[app]'")


def test_unknown_weights_are_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    folder = str(tmp_path / "space")
    assert_fails(["app", "acmix_resnet_pica", "--export-space", folder], capsys, "acmix_resnet_pico")
    assert not list(tmp_path.iterdir())


def test_a_space_is_written_without_gradio(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(packages, "find_spec", lambda name: None)
    out = run_command(capsys, "app", "--export-space", tmp_path / "space")
    assert out.startswith("Saved README.md, acmix_zoo, app.py") and (tmp_path / "space" / "app.py").is_file()
