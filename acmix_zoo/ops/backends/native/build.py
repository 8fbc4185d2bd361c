"""Compile the native library, into a cache that all processes of a user share, or into a wheel.

The library depends on nothing but the C library: one `g++` or `clang++` call, no headers of PyTorch or Python. So a
build serves every version of both.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path

SOURCES = Path(__file__).parent / "src"
# One library for each, from the same sources. "portable" uses what every CPU of the architecture has (SSE2, NEON).
INSTRUCTION_SETS: dict[str, tuple[str, ...]] = {
    "avx512": ("-DLANES=16", "-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mavx2", "-mfma"),
    "avx2": ("-DLANES=8", "-mavx2", "-mfma"),
    "portable": ("-DLANES=4",),
}
# No -ffast-math: NaN and infinity must come out where they do in the reference.
_FLAGS = (
    "-std=c++17", "-O3", "-fPIC", "-shared", "-fvisibility=hidden", "-fno-exceptions", "-fno-rtti",
    "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=fast",
)  # fmt: skip
_SECONDS = 300

logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The library cannot be built here; the message is one line."""


def find_compiler() -> str | None:
    """Return the path of a C++ compiler: that of the environment variable CXX, else c++, g++ or clang++; or None."""
    if not sys.platform.startswith(("linux", "darwin")):
        return None
    candidates = [os.environ.get("CXX", ""), "c++", "g++", "clang++"]
    return next((path for name in candidates if name and (path := shutil.which(name))), None)


def compile_library(target: Path, instruction_set: str, compiler: str, extra: tuple[str, ...] = ()) -> None:
    """Compile the sources for one of `INSTRUCTION_SETS` into `target`, which appears only when it is complete.

    Raises:
        BuildError: the compiler failed.
    """
    command = [compiler, *_FLAGS, *INSTRUCTION_SETS[instruction_set], *extra, str(SOURCES / "acmix.cpp")]
    descriptor, name = tempfile.mkstemp(dir=target.parent, suffix=".so")
    os.close(descriptor)
    try:
        done = subprocess.run([*command, "-o", name], capture_output=True, encoding="utf-8", timeout=_SECONDS)
        if done.returncode:
            target.with_suffix(".log").write_text(f"{' '.join(command)}\n{done.stderr}", encoding="utf-8")
            raise BuildError(f"{compiler} failed, see {target.with_suffix('.log')}")
        Path(name).chmod(0o755)
        os.replace(name, target)
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} failed: {str(error).splitlines()[0]}") from error
    finally:
        Path(name).unlink(missing_ok=True)


def cached_library(instruction_set: str, extra: tuple[str, ...] = ()) -> Path:
    """Return the path of the library for `instruction_set`, after building it if no process has done so before.

    Processes that need it at the same time wait for one of them to build it. Its name depends on the sources, the
    flags and the compiler, so that a change of any of them leads to a new build.

    Raises:
        BuildError: there is no compiler, it failed, or the cache cannot be written.
    """
    compiler = find_compiler()
    if compiler is None:
        raise BuildError("there is no C++ compiler (g++ or clang++)")
    target = cache_folder() / f"{instruction_set}-{_fingerprint(compiler, instruction_set, extra)}.so"
    if target.exists():
        return target
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if target.with_suffix(".log").exists():  # do not try the same again in every process
                raise BuildError(f"{compiler} failed before, see {target.with_suffix('.log')}; delete it to try again")
            if not target.exists():
                logger.info("Compiling the native CPU kernel, once for this machine: %s", target)
                compile_library(target, instruction_set, compiler, extra)
    except OSError as error:
        raise BuildError(f"the cache {target.parent} cannot be used: {error}") from error
    return target


def cache_folder() -> Path:
    """Return the folder for built libraries: below XDG_CACHE_HOME, or ~/.cache."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acmix_zoo" / "native"


@lru_cache(maxsize=8)
def _fingerprint(compiler: str, instruction_set: str, extra: tuple[str, ...]) -> str:
    try:
        version = subprocess.run([compiler, "--version"], capture_output=True, timeout=_SECONDS).stdout
    except (OSError, subprocess.SubprocessError) as error:
        raise BuildError(f"{compiler} cannot be run: {error}") from error
    digest = hashlib.sha256(version + platform.machine().encode() + "".join(platform.libc_ver()).encode())
    for text in (*_FLAGS, *INSTRUCTION_SETS[instruction_set], *extra, compiler):
        digest.update(f"{text}\0".encode())
    for path in sorted(SOURCES.iterdir()):
        digest.update(path.name.encode() + b"\0" + path.read_bytes())
    return digest.hexdigest()[:16]


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Hold an exclusive lock, which the system releases even if the process is killed."""
    import fcntl  # not on Windows, where there is no build

    with path.open("w", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield
