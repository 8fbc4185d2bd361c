"""The command table, the help texts, and which libraries they import."""

from __future__ import annotations

import importlib
import os
import re
import signal
import subprocess
import sys

import pytest

from acmix_zoo import __version__
from acmix_zoo.cli.commands import COMMANDS, LIGHT_COMMANDS, RECIPE_COMMANDS
from acmix_zoo.cli.main import main


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_a_function(name: str) -> None:
    module, _, function = COMMANDS[name].function.partition(":")
    assert callable(getattr(importlib.import_module(f"acmix_zoo.cli.{module}"), function))


def test_overview_lists_every_command_within_one_screen(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == main(["--help"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert {line.split()[0] for line in lines if line.startswith("  ")} == set(COMMANDS)
    assert len(lines) // 2 <= 32 and max(map(len, lines)) <= 120


def test_version_is_printed(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"{__version__}\n"


def test_an_unknown_command_lists_the_closest_one(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["clasify"]) == 2
    assert "unknown command 'clasify'. Did you mean classify?" in capsys.readouterr().err
    assert main(["xyz"]) == 2
    assert "The commands are train, fit, validate, test" in capsys.readouterr().err


@pytest.mark.parametrize(
    "arguments", [["--help"], [], ["clasify"], ["fit", "--help"], *([name, "--help"] for name in LIGHT_COMMANDS)]
)
def test_help_does_not_import_torch(arguments: list[str]) -> None:
    command = [sys.executable, "-X", "importtime", "-m", "acmix_zoo.cli", *arguments]
    imported = subprocess.run(command, capture_output=True, text=True).stderr
    assert "acmix_zoo.cli.commands" in imported and "torch" not in imported


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGPIPE")
@pytest.mark.parametrize("arguments", ["--help", pytest.param("list", marks=pytest.mark.slow)])
def test_a_pipe_that_is_closed_early_ends_the_command_quietly(arguments: str) -> None:
    """As in `acmix-zoo list | head -1`."""
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "acmix_zoo.cli", arguments]
    done = subprocess.run(command, stdout=writer, stderr=subprocess.PIPE, text=True)
    os.close(writer)
    assert done.returncode == 128 + signal.SIGPIPE and done.stderr == ""


@pytest.mark.parametrize("command", RECIPE_COMMANDS)
def test_short_help_names_options_that_exist(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main([command, "--help"]) == 0
    short = capsys.readouterr().out
    assert len(short.splitlines()) <= 24 and f"acmix-zoo {command} --help-all" in short
    with pytest.raises(SystemExit) as stop:
        main([command, "--help-all"])
    assert stop.value.code == 0
    options = set(re.findall(r"--[\w.]+", capsys.readouterr().out))
    own = {"--help"} | ({"--model", "--threshold", "--output"} if command == "predict" else set())  # of another parser
    assert set(re.findall(r"--[\w.]+", short)) - own <= options


@pytest.mark.parametrize("command", sorted(COMMANDS.keys() - set(RECIPE_COMMANDS)))
def test_help_of_other_commands_fits_one_screen(command: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        main([command, "--help"])
    assert stop.value.code == 0
    text = capsys.readouterr().out
    assert text.startswith(f"usage: acmix-zoo {command}") and len(text.splitlines()) <= 60
