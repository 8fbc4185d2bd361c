"""Errors that no one expected end in one line; the traceback goes to a file, or is printed with `--debug`."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import run_command

from acmix_zoo.cli import list as list_command


@pytest.fixture(autouse=True)
def defect(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Make `acmix-zoo list` fail as a defect would, and return the folder for temporary files."""

    def fail(pattern: str, pretrained: bool) -> None:
        raise KeyError("missing")

    monkeypatch.setattr(list_command, "list_models", fail)
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    for name in ("RANK", "SLURM_JOB_ID"):
        monkeypatch.delenv(name, raising=False)
    return tmp_path


def test_the_traceback_is_in_a_file(defect: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (error,) = run_command(capsys, "list", code=1).splitlines()
    assert error.startswith("acmix-zoo: error: unexpected KeyError: 'missing'. The traceback is in ")
    assert error.endswith("run the command with --debug")
    (file,) = defect.glob("acmix-zoo-*.txt")
    assert str(file) in error and "Traceback (most recent call last)" in file.read_text()


def test_the_traceback_is_printed_with_debug(capsys: pytest.CaptureFixture[str]) -> None:
    for arguments in (["--debug", "list"], ["list", "--debug"]):
        error = run_command(capsys, *arguments, code=1)
        assert re.search(r"Traceback.*in fail\n.*KeyError: 'missing'", error, re.DOTALL)


def test_debug_also_shows_where_an_expected_error_was_raised(capsys: pytest.CaptureFixture[str]) -> None:
    error = run_command(capsys, "info", "nothing", "--debug", code=1)
    assert error.startswith("acmix-zoo: error: unknown model 'nothing'") and "in locate" in error
    assert "Traceback" not in run_command(capsys, "info", "nothing", code=1)


@pytest.mark.parametrize("variable", ["RANK", "SLURM_JOB_ID"])
def test_jobs_on_a_cluster_print_the_traceback(
    variable: str, defect: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv(variable, "0")
    assert "Traceback" in run_command(capsys, "list", code=1) and not list(defect.iterdir())


def test_a_full_disk_does_not_hide_the_error(
    defect: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(defect / "none"))
    assert "KeyError: 'missing'" in run_command(capsys, "list", code=1)
