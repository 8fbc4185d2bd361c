"""Building the native library: missing and broken compilers, several processes, and wheels."""

from __future__ import annotations

import multiprocessing
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from acmix_zoo.ops.backends.native import build, library

ROOT = Path(__file__).resolve().parents[4]
LAYER = "import torch, acmix_zoo; y = acmix_zoo.ACmix2d(8, 16)(torch.randn(1, 8, 9, 9)); print(tuple(y.shape))"
PLAN = "from acmix_zoo.ops import explain_plan; print(explain_plan((1, 8, 9, 9), 16).splitlines()[0])"

needs_compiler = pytest.mark.skipif(not build.find_compilers(), reason="no C++ compiler")


def python(code: str, cache: Path, **environment: str) -> tuple[str, str]:
    """Run code in a process with an empty cache, and return its stdout and stderr."""
    kept = {name: value for name, value in os.environ.items() if name != "ACMIX_NATIVE_ISA"}
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        encoding="utf-8",
        env={**kept, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(cache), "ACMIX_BACKEND": "native", **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout, done.stderr


def script(path: Path, body: str) -> str:
    """Write an executable shell script, and return its path."""
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


@pytest.mark.slow
def test_without_a_compiler(tmp_path: Path):
    """One warning is printed, and the layer runs."""
    out, error = python(f"{LAYER}; {LAYER}; {PLAN}", tmp_path, PATH="", CXX="")
    assert out.splitlines()[:2] == ["(1, 16, 9, 9)"] * 2
    assert "layer: Python, because there is no native library" in out
    assert (
        error.count("is no C++ compiler (GCC 12 or newer, or clang 14 or newer). The slower Python backend runs.") == 1
    )


@pytest.mark.slow
def test_with_a_broken_compiler(tmp_path: Path):
    """Importing the package builds nothing. The first layer prints what failed and where the compiler's output is."""
    compiler = script(
        tmp_path / "c++", 'printf "In file included\\nx.h:1: error: bad\\na page of context\\n" >&2; exit 1'
    )
    cache = tmp_path / "acmix_zoo"
    imports = f"import pathlib, acmix_zoo, acmix_zoo.ops; print(pathlib.Path({str(cache)!r}).exists())"
    out, error = python(f"{imports}; {LAYER}", tmp_path, CXX=compiler, PATH="")
    assert out == "False\n(1, 16, 9, 9)\n"
    (line,) = (line for line in error.splitlines() if "The native CPU kernel is not available" in line)
    (log,) = (tmp_path / "acmix_zoo" / "native").glob("*.log")
    assert f"{compiler} failed: x.h:1: error: bad (see {log}). The slower Python backend runs." in line
    assert "a page of context" not in error and "a page of context" in log.read_text(encoding="utf-8")


class TestCompilers:
    """Compilers are replaced by scripts, which note how they are called."""

    @pytest.fixture(autouse=True)
    def folders(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        monkeypatch.setenv("PATH", f"{tmp_path}:/bin:/usr/bin")
        monkeypatch.delenv("CXX", raising=False)
        monkeypatch.setattr(
            build.shutil, "which", lambda name: str(path) if (path := tmp_path / name).exists() else None
        )
        build._version.cache_clear()

    def compiler(self, path: Path, version: str = "1", status: int = 0) -> Path:
        """Write a compiler whose calls are lines in `path`.calls, and which writes its name into what it builds."""
        script(
            path,
            f'for last; do :; done; [ "$last" = --version ] && echo "{path.name} {version}" && exit 0\n'
            f'echo "$@" >> {path}.calls; echo {path.name} > "$last"; exit {status}',
        )
        return path

    def calls(self, path: Path) -> int:
        calls = path.with_name(f"{path.name}.calls")
        return len(calls.read_text(encoding="utf-8").splitlines()) if calls.exists() else 0

    def test_next_one_is_tried_after_a_failure(self, tmp_path: Path, caplog: pytest.LogCaptureFixture):
        broken = self.compiler(tmp_path / "g++", status=1)
        self.compiler(tmp_path / "clang++", "2")
        assert build.cached_library("portable").read_text(encoding="utf-8") == "clang++\n"
        assert "g++ failed: exit status 1" in caplog.text and "compiled by clang++ instead" in caplog.text
        build.cached_library("portable")
        assert self.calls(broken) == 1

    def test_same_compiler_under_two_names_is_tried_once(self, tmp_path: Path):
        for name in ("c++", "g++"):
            self.compiler(tmp_path / name, status=1)
        with pytest.raises(build.BuildError, match=r"^c\+\+ failed: exit status 1 \(see [^;]*\)$"):
            build.cached_library("portable")

    def test_cxx_may_have_arguments(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        self.compiler(tmp_path / "ccache")
        monkeypatch.setenv("CXX", "ccache g++ '-I a folder'")
        assert [c.command for c in build.find_compilers()] == [("ccache", "g++", "-I a folder")]
        build.cached_library("portable")
        assert (tmp_path / "ccache.calls").read_text(encoding="utf-8").startswith("g++ -I a folder -std=c++17")

    def test_cxx_that_does_not_exist_is_named(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CXX", "missing++")
        with pytest.raises(build.BuildError, match=r"missing\+\+ failed: .*No such file"):
            build.cached_library("portable")

    def test_cxx_with_an_unbalanced_quote_is_an_error_of_the_build(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setenv("CXX", "g++ '")
        with pytest.raises(build.BuildError, match="cannot be split into arguments"):
            build.cached_library("portable")

    def test_an_empty_log_is_no_failure(self, tmp_path: Path):
        """A full disk leaves one behind."""
        compiler = self.compiler(tmp_path / "g++", status=1)
        with pytest.raises(build.BuildError):
            build.cached_library("portable")
        (log,) = (tmp_path / "cache/acmix_zoo/native").glob("*.log")
        log.write_text("", encoding="utf-8")
        with pytest.raises(build.BuildError, match="failed: exit status 1"):
            build.cached_library("portable")
        assert self.calls(compiler) == 2

    def test_a_version_in_any_encoding_is_accepted(self, tmp_path: Path):
        script(tmp_path / "g++", "printf '\\351\\n'")
        (compiler,) = build.find_compilers()
        assert compiler.version == "\N{REPLACEMENT CHARACTER}\n"

    def test_platforms_without_a_build_say_so(self, monkeypatch: pytest.MonkeyPatch):
        monkeypatch.setattr(build.sys, "platform", "win32")
        with pytest.raises(build.BuildError, match="there is no build for win32"):
            build.cached_library("portable")

    def test_failure_is_remembered_for_this_version_and_a_day(self, tmp_path: Path):
        compiler = self.compiler(tmp_path / "g++", status=1)
        for _ in range(2):
            with pytest.raises(build.BuildError):
                build.cached_library("portable")
        assert self.calls(compiler) == 1
        (log,) = (tmp_path / "cache/acmix_zoo/native").glob("*.log")
        os.utime(log, (0, 0))
        with pytest.raises(build.BuildError):
            build.cached_library("portable")
        assert self.calls(compiler) == 2
        self.compiler(compiler, version="2")
        build._version.cache_clear()
        assert build.cached_library("portable").exists()

    def test_forked_processes_build_once(self, tmp_path: Path):
        """The others wait for the first one. test_many_processes_build_once also loads the library in each process."""
        script(
            tmp_path / "g++",
            f'for last; do :; done; [ "$last" = --version ] && echo 1 && exit 0\n'
            f'echo "$@" >> {tmp_path}/g++.calls; sleep 0.3; echo built > "$last"',
        )
        context = multiprocessing.get_context("fork")
        processes = [context.Process(target=build.cached_library, args=("portable",)) for _ in range(3)]
        for process in processes:
            process.start()
        for process in processes:
            process.join(60)
            assert process.exitcode == 0
        assert self.calls(tmp_path / "g++") == 1
        assert {path.suffix for path in (tmp_path / "cache/acmix_zoo/native").iterdir()} == {".so", ".lock"}

    def test_library_is_found_without_its_compiler(self, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
        compiler = self.compiler(tmp_path / "my++")
        monkeypatch.setenv("CXX", str(compiler))
        built = build.cached_library("portable")
        compiler.unlink()
        assert build.cached_library("portable") == built
        monkeypatch.delenv("CXX")
        assert build.find_compilers() == [] and build.cached_library("portable") == built


@pytest.mark.slow  # TestCompilers has a quick one with forked processes
@needs_compiler
def test_many_processes_build_once(tmp_path: Path):
    """The others wait for the first one and load its library. A script that copies a library replaces the compiler."""
    library.library()
    built = build.cached_library(library.instruction_set())
    body = (
        'if [ "$1" = --version ]; then echo fake; exit 0; fi\n'
        f"echo build >> {tmp_path}/builds; sleep 1; for last; do :; done; cp {built} $last"
    )
    compiler = script(tmp_path / "c++", body)
    command = [sys.executable, "-c", f"{LAYER}; {PLAN}"]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "XDG_CACHE_HOME": str(tmp_path), "CXX": compiler}
    environment["ACMIX_BACKEND"] = "native"
    processes = [subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True) for _ in range(3)]
    for process in processes:
        out, _ = process.communicate(timeout=120)
        assert process.returncode == 0 and "layer: native" in out
    assert (tmp_path / "builds").read_text(encoding="utf-8") == "build\n"
    suffixes = {path.suffix for path in (tmp_path / "acmix_zoo" / "native").iterdir()}
    assert suffixes == {".so", ".lock"}


@pytest.mark.slow
@needs_compiler
def test_a_layer_runs_when_the_cache_cannot_be_written(tmp_path: Path):
    (tmp_path / "acmix_zoo").write_text("a file where the folder should be", encoding="utf-8")
    out, error = python(LAYER, tmp_path)
    assert out == "(1, 16, 9, 9)\n" and error.count("cannot be used") == 1


@pytest.mark.slow
@needs_compiler
def test_wheel_carries_the_library(tmp_path: Path):
    """The wheel is for any version of Python on this platform. Its library is used without a compiler."""
    command = [sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", str(tmp_path), str(ROOT)]
    subprocess.run(command, check=True, capture_output=True)
    (wheel,) = tmp_path.glob("*.whl")
    assert "-py3-none-" in wheel.name and not wheel.name.endswith("any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if name.endswith(".so")}
        archive.extractall(tmp_path / "site")
    assert f"acmix_zoo/ops/backends/native/lib/{library.instruction_set()}.so" in names
    environment = {
        "PYTHONPATH": str(tmp_path / "site"),
        "PATH": "",
        "CXX": "",
        "XDG_CACHE_HOME": str(tmp_path / "empty"),
    }
    done = subprocess.run(
        [sys.executable, "-c", f"{LAYER}; {PLAN}"], env=environment, capture_output=True, encoding="utf-8", cwd=tmp_path
    )
    assert "layer: native" in done.stdout and not done.stderr, done.stdout + done.stderr
    assert not (tmp_path / "empty").exists()
