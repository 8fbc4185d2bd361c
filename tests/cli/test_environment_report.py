"""`acmix-zoo info` without a model: what it prints about the machine."""

from __future__ import annotations

import importlib.metadata
import json

import pytest
import torch
from support.commands import run_command

from acmix_zoo import __version__
from acmix_zoo.cli import environment_report


def test_versions_devices_and_backend(capsys: pytest.CaptureFixture[str]) -> None:
    found = json.loads(run_command(capsys, "info", "--json"))
    assert found["acmix-zoo"] == __version__ and found["torch"] == importlib.metadata.version("torch")
    assert found["cpu"]["threads"] == torch.get_num_threads()
    out = run_command(capsys, "info")
    assert f"acmix-zoo {__version__}" in out and f"torch uses {torch.get_num_threads()} thread" in out
    assert f"Backend of ACmix layers on the CPU: {found['backend']}" in out
    assert "run acmix-zoo info MODEL" in out.splitlines()[-1]


def test_missing_packages_are_named(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(environment_report, "_PACKAGES", ("torch", "no-such-package"))
    assert "no-such-package (not installed)" in run_command(capsys, "info")
