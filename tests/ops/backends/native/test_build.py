"""Building and loading the native library: without a compiler, with a broken one, by many processes, in a wheel."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import torch

from acmix_zoo import ACmix2d
from acmix_zoo.ops.backends.native import build, layer, library

ROOT = Path(__file__).resolve().parents[4]
LAYER = "import torch, acmix_zoo; y = acmix_zoo.ACmix2d(8, 16)(torch.randn(1, 8, 9, 9)); print(tuple(y.shape))"
PLAN = "from acmix_zoo.ops import explain_plan; print(explain_plan((1, 8, 9, 9), 16).splitlines()[0])"

needs_compiler = pytest.mark.skipif(build.find_compiler() is None, reason="no C++ compiler")


def python(code: str, cache: Path, **environment: str) -> tuple[str, str]:
    """Run code in a process with an empty cache; return what it wrote to stdout and stderr."""
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
    path.write_text(f"#!/bin/sh\n{body}\n", encoding="utf-8")
    path.chmod(0o755)
    return str(path)


def test_importing_builds_nothing(tmp_path: Path):
    compiler = script(tmp_path / "c++", f"touch {tmp_path}/called; exit 1")
    python("import acmix_zoo, acmix_zoo.ops", tmp_path, CXX=compiler)
    assert not (tmp_path / "called").exists() and not (tmp_path / "acmix_zoo").exists()


def test_without_a_compiler(tmp_path: Path):
    """One line says so, and the layer runs."""
    out, error = python(f"{LAYER}; {LAYER}; {PLAN}", tmp_path, PATH="", CXX="")
    assert out.splitlines()[:2] == ["(1, 16, 9, 9)"] * 2
    assert "layer: Python, because there is no native library" in out
    assert error.count("there is no C++ compiler (g++ or clang++). The slower Python backend runs.") == 1


def test_with_a_broken_compiler(tmp_path: Path):
    """One line says where its output is; later processes do not try again."""
    body = f'echo called >> {tmp_path}/calls; [ "$1" = --version ] && exit 0; echo "a page of errors" >&2; exit 1'
    compiler = script(tmp_path / "c++", body)
    for _ in range(2):
        out, error = python(LAYER, tmp_path, CXX=compiler)
        assert out == "(1, 16, 9, 9)\n" and error.count("The native CPU kernel is not available") == 1
        assert "a page of errors" not in error
    (log,) = (tmp_path / "acmix_zoo" / "native").glob("*.log")
    assert "a page of errors" in log.read_text(encoding="utf-8")
    assert (tmp_path / "calls").read_text(encoding="utf-8").count("called") == 3  # a version each, and one build


@needs_compiler
def test_many_processes_build_once(tmp_path: Path):
    """The others wait for the first one and load what it built. The compiler is replaced by a slow copy."""
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
    left = {path.suffix for path in (tmp_path / "acmix_zoo" / "native").iterdir()}
    assert left == {".so", ".lock"}


@needs_compiler
def test_a_cache_that_cannot_be_written(tmp_path: Path):
    (tmp_path / "acmix_zoo").write_text("a file where the folder should be", encoding="utf-8")
    out, error = python(LAYER, tmp_path)
    assert out == "(1, 16, 9, 9)\n" and error.count("cannot be used") == 1


@pytest.mark.parametrize(
    ("name", "best", "message"),
    [("sse9", "AVX512", "is unknown. Use one of avx512, avx2, portable"), ("avx512", "AVX2", "only has 'avx2'")],
)
def test_instruction_sets_that_cannot_be_forced(name, best, message, monkeypatch):
    """The error comes before any instruction that the CPU does not have."""
    monkeypatch.setenv("ACMIX_NATIVE_ISA", name)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: best)
    with pytest.raises(ValueError, match=message):
        library.instruction_set()


@pytest.mark.parametrize(("capability", "name"), [("AVX512", "avx512"), ("AVX2", "avx2"), ("DEFAULT", "portable")])
def test_instruction_set_of_the_cpu(capability, name, monkeypatch):
    monkeypatch.delenv("ACMIX_NATIVE_ISA", raising=False)
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    assert library.instruction_set() == name


@needs_compiler
def test_threads_are_those_of_pytorch(monkeypatch):
    """The library has no OpenMP of its own, and asks for as many threads as PyTorch is set to."""
    if shutil.which("readelf"):
        path = build.cached_library(library.instruction_set())
        needed = subprocess.run(["readelf", "-d", path], capture_output=True, encoding="utf-8").stdout
        assert "omp" not in needed
    if sys.platform == "linux":
        assert library.parallel() is not None
    asked: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def run(task, shared, threads, flags):
        asked.append(threads)
        task(shared)

    monkeypatch.setattr(layer, "parallel", lambda: ctypes.cast(run, ctypes.c_void_p).value)
    module, x, before = ACmix2d(64, 64), torch.randn(2, 64, 20, 20), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        module(x)
        assert asked and set(asked) == {2}
        asked.clear()
        torch.set_num_threads(1)
        module(x)
        assert not asked
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@needs_compiler
def test_wheel_carries_the_library(tmp_path: Path):
    """For any version of Python on this platform. Installed, it is used without a compiler."""
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


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize("isa", build.INSTRUCTION_SETS)
def test_sanitisers_find_nothing(isa: str, tmp_path: Path):
    """Neither an access outside of a tensor nor undefined behaviour, forward and backward."""
    order = ["portable", "avx2", "avx512"]
    if order.index(isa) > order.index(library.instruction_set()):
        pytest.skip("the CPU cannot run it")
    options = [
        "-std=c++17",
        "-O1",
        "-g",
        "-ffp-contract=fast",
        "-fsanitize=address,undefined",
        "-fno-sanitize-recover=all",
    ]
    source, program = Path(__file__).with_name("sanitised.cpp"), tmp_path / "sanitised"
    command = [
        build.find_compiler(),
        *options,
        *build.INSTRUCTION_SETS[isa],
        f"-I{build.SOURCES}",
        source,
        "-o",
        program,
    ]
    built = subprocess.run(command, capture_output=True, encoding="utf-8")
    if "cannot find" in built.stderr:
        pytest.skip("the compiler has no sanitisers")
    assert built.returncode == 0, built.stderr[-3000:]
    done = subprocess.run([program], capture_output=True, encoding="utf-8")
    assert done.stdout == "clean\n" and done.returncode == 0, done.stderr[-3000:]
