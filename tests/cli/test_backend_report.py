"""`acmix-zoo info --backends`: what it prints for each state of the machine, and what to do for a faster backend."""

from __future__ import annotations

import pytest

from acmix_zoo.cli import backend_report
from acmix_zoo.cli.main import main
from acmix_zoo.ops import use_backend
from acmix_zoo.ops.backends.native import layer, library
from acmix_zoo.ops.backends.native.build import Compiler
from acmix_zoo.ops.backends.native.library import Loaded

COMPILER = Compiler(("ccache", "g++"), "g++ (Debian) 12.2.0\nCopyright")


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch) -> None:
    """A machine with AVX2, a compiler and a library."""
    monkeypatch.delenv("ACMIX_NATIVE_ISA", raising=False)
    monkeypatch.setattr(library.torch.backends.cpu, "get_cpu_capability", lambda: "AVX2")
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(backend_report, "find_compilers", lambda: [COMPILER])
    monkeypatch.setattr(layer, "parallel", lambda: 1)
    set_library(monkeypatch, Loaded(object(), "/cache/avx2.so"))


def set_library(monkeypatch: pytest.MonkeyPatch, loaded: Loaded) -> None:
    monkeypatch.setattr(backend_report, "loaded", lambda: loaded)
    monkeypatch.setattr(layer, "library", lambda: loaded.library)


def printed(capsys: pytest.CaptureFixture[str], backend: str | None = None) -> list[str]:
    with use_backend(backend):
        assert main(["info", "--backends"]) == 0
    return capsys.readouterr().out.splitlines()


def test_everything_there(capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys)
    assert lines[:4] == [
        "Backend: automatic",
        "Instruction set: avx2; the best one that this CPU supports is avx2",
        "Native library: /cache/avx2.so",
        "C++ compiler: ccache g++, g++ (Debian) 12.2.0",
    ]
    assert [line.split()[-2:] for line in lines[5:7]] == [["native", "native"], ["global", "tiles"]]
    assert lines[7:] == ["This is the fastest choice on this machine."]


def test_gpu_has_a_row(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(library.torch.cuda, "is_available", lambda: True)
    assert printed(capsys, "python")[7].split() == ["on", "cuda", "global", "tiles"]


def test_no_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    set_library(monkeypatch, Loaded(None, "there is no C++ compiler (GCC 12 or newer, or clang 14 or newer)"))
    monkeypatch.setattr(backend_report, "find_compilers", list)
    lines = printed(capsys)
    assert "Native library: not available: there is no C++ compiler (GCC 12 or newer, or clang 14 or newer)" in lines
    assert lines[5].split()[-2:] == ["global", "tiles"]
    assert "install a C++ compiler (GCC 12 or newer, or clang 14 or newer), such as g++" in lines[-1]


def test_broken_compiler(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    set_library(monkeypatch, Loaded(None, "ccache g++ failed: no space left (see /cache/avx2.log)"))
    lines = printed(capsys)
    assert lines[2].endswith("failed: no space left (see /cache/avx2.log)")
    assert "set CXX to a working C++ compiler" in lines[-1]


def test_forced_backend(capsys: pytest.CaptureFixture[str]):
    lines = printed(capsys, "reference")
    assert lines[0] == "Backend: reference, set by ACMIX_BACKEND"
    assert lines[5].split()[-2:] == ["reference", "reference"]
    assert lines[-1] == "To use the fastest backend, unset ACMIX_BACKEND."


def test_forced_instruction_set(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("ACMIX_NATIVE_ISA", "portable")
    lines = printed(capsys)
    assert lines[1] == "Instruction set: portable; the best one that this CPU supports is avx2"
    assert lines[-1] == "To use avx2, unset ACMIX_NATIVE_ISA."


def test_model_and_backends_exclude_each_other(capsys: pytest.CaptureFixture[str]):
    with pytest.raises(SystemExit):
        main(["info", "acmix_resnet_pico", "--backends"])
    assert "not allowed with argument" in capsys.readouterr().err
