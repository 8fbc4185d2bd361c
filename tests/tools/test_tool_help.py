"""Every tool runs as `python -m tools.NAME --help` and explains itself."""

from __future__ import annotations

import runpy
import sys
from pathlib import Path

import pytest

import tools

# The other modules are parts of tools.
NAMES = sorted(path.stem for path in Path(tools.__path__[0]).glob("*.py") if "__main__" in path.read_text("utf-8"))


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.filterwarnings("ignore:.*found in sys.modules:RuntimeWarning")
def test_help(name: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [f"tools/{name}.py", "--help"])
    with pytest.raises(SystemExit) as ended:
        runpy.run_module(f"tools.{name}", run_name="__main__")
    out = capsys.readouterr().out
    assert ended.value.code == 0 and f"usage: python -m tools.{name}" in out
    description = out.split("\n\n")[1]
    assert len(description) > 30 and description.rstrip().endswith((".", ":")), "the docstring explains the tool"
