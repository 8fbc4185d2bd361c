"""Every tool runs as `python -m tools.NAME --help` and explains itself. (`folder_graph` is a part of `build_docs`.)"""

from __future__ import annotations

import pkgutil
import runpy
import sys

import pytest

import tools

NAMES = sorted(module.name for module in pkgutil.iter_modules(tools.__path__) if module.name != "folder_graph")


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
