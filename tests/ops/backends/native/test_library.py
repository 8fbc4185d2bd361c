"""The loaded native library: its instruction set, its threads, and what sanitisers say about its code."""

from __future__ import annotations

import ctypes
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from acmix_zoo import ACmix2d
from acmix_zoo.ops.backends.native import build, layer, library

needs_compiler = pytest.mark.skipif(not build.find_compilers(), reason="no C++ compiler")


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
    """The library does not link OpenMP, and requests as many threads as PyTorch is set to."""
    if shutil.which("readelf"):
        path = build.cached_library(library.instruction_set())
        needed = subprocess.run(["readelf", "-d", path], capture_output=True, encoding="utf-8").stdout
        assert "omp" not in needed
    if sys.platform == "linux":
        assert library.parallel() is not None
    requested: list[int] = []

    @ctypes.CFUNCTYPE(None, ctypes.CFUNCTYPE(None, ctypes.c_void_p), ctypes.c_void_p, ctypes.c_uint, ctypes.c_uint)
    def run(task, shared, threads, flags):
        requested.append(threads)
        task(shared)

    monkeypatch.setattr(layer, "parallel", lambda: ctypes.cast(run, ctypes.c_void_p).value)
    module, x, before = ACmix2d(64, 64), torch.randn(2, 64, 20, 20), torch.get_num_threads()
    try:
        torch.set_num_threads(2)
        module(x)
        assert requested and set(requested) == {2}
        requested.clear()
        torch.set_num_threads(1)
        module(x)
        assert not requested
    finally:
        torch.set_num_threads(before)


@pytest.mark.slow
@needs_compiler
@pytest.mark.parametrize(
    ("isa", "sanitisers"),
    [
        (library.best_instruction_set(), "address,undefined"),  # the widest vectors, which reach furthest
        ("portable", "address,undefined"),
        ("portable", "thread"),  # threads share the same data whatever the instructions
    ],
)
def test_sanitisers_find_no_error(isa: str, sanitisers: str, tmp_path: Path):
    """No access outside of a tensor, no undefined behaviour and no race, forward and backward, without memory too."""
    order = ["portable", "avx2", "avx512"]
    if order.index(isa) > order.index(library.instruction_set()):
        pytest.skip("the CPU cannot run it")
    options = [
        "-std=c++17",
        "-O1",
        "-g",
        "-ffp-contract=fast",
        "-pthread",
        f"-fsanitize={sanitisers}",
        "-fno-sanitize-recover=all",
    ]
    source, program = Path(__file__).with_name("sanitised.cpp"), tmp_path / "sanitised"
    command = [
        *build.find_compilers()[0].command,
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
    if "unexpected memory mapping" in done.stderr:
        pytest.skip("the thread sanitiser of this compiler does not support this kernel")
    assert done.stdout == "clean\n" and done.returncode == 0, done.stderr[-3000:]


def test_a_user_without_a_home_directory(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The Python backend runs, as for every other reason."""

    def no_home():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", no_home)
    monkeypatch.setattr(library, "PREBUILT", tmp_path)
    library._load.cache_clear()
    try:
        with pytest.warns(UserWarning, match=r"Set HOME or XDG_CACHE_HOME\. The slower Python backend runs"):
            assert library.library() is None
    finally:
        library._load.cache_clear()
