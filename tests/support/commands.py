"""Run commands of `acmix-zoo` in this process."""

from __future__ import annotations

import pytest

from acmix_zoo.cli.main import main


def run_command(capsys: pytest.CaptureFixture[str], *arguments: object, code: int = 0) -> str:
    """Run a command that exits with `code`. Return its output, or its errors if the code is not 0."""
    assert main([str(argument) for argument in arguments]) == code
    output, error = capsys.readouterr()
    return output if code == 0 else error


def assert_fails(arguments: list[str], capsys: pytest.CaptureFixture[str], *messages: str) -> None:
    """Assert that a command fails with one line that contains all messages, and without a traceback."""
    assert main(arguments) == 1
    error = capsys.readouterr().err
    assert "Traceback" not in error
    line = next(line for line in error.splitlines() if line.startswith("acmix-zoo: error: "))
    assert all(message in line for message in messages), line
