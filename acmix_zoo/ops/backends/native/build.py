"""Compile the native library, into a cache that all processes of a user share, or into a wheel.

The library depends on nothing but the C library: one `g++` or `clang++` call, no headers of PyTorch or Python. So a
build serves every version of both.
"""

from __future__ import annotations

import hashlib
import logging
import os
import platform
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from functools import lru_cache
from pathlib import Path
from typing import NamedTuple

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
# src/vectors.h refuses older versions.
REQUIRED_COMPILER = "GCC 12 or newer, or clang 14 or newer"
_TIMEOUT = 300
# A failure is remembered, so that not every process tries again. Not for longer, because the disk may have been full.
_REMEMBERED_SECONDS = 24 * 3600

logger = logging.getLogger(__name__)


class BuildError(RuntimeError):
    """The library cannot be built here; the message is one line."""


class Compiler(NamedTuple):
    """A C++ compiler.

    Attributes:
        command: the program and arguments that come before all others, such as ("ccache", "g++").
        version: what it answers to --version, or "" if it cannot be run.
    """

    command: tuple[str, ...]
    version: str

    def __str__(self) -> str:
        return " ".join(self.command)


def _is_posix() -> bool:
    return sys.platform.startswith(("linux", "darwin"))


def find_compilers() -> list[Compiler]:
    """Return the C++ compilers to try, in order: that of the environment variable CXX, then c++, g++ and clang++.

    Raises:
        BuildError: CXX has an unbalanced quote.
    """
    if not _is_posix():
        return []
    try:
        chosen = tuple(shlex.split(os.environ.get("CXX", "")))
    except ValueError as error:
        raise BuildError(f"CXX={os.environ['CXX']} cannot be split into arguments: {error}") from error
    commands = [chosen] * bool(chosen) + [(name,) for name in ("c++", "g++", "clang++") if shutil.which(name)]
    found: dict[tuple[str, ...], Compiler] = {}
    for command in commands:
        version = _version(command)
        program, _, rest = version.partition(" ")  # "c++ (Debian …", which is the same as "g++ (Debian …"
        found.setdefault((rest or program or command[0], *command[1:]), Compiler(command, version))
    return list(found.values())


def build_library(target: Path, instruction_set: str) -> None:
    """Compile the sources for one of `INSTRUCTION_SETS` into `target`, with the first compiler that succeeds.

    `target` appears only when it is complete. The output of a compiler that fails is left in a log file beside it.

    Raises:
        BuildError: there is no compiler, all of them failed, or CXX has an unbalanced quote.
    """
    failures: list[str] = []
    for compiler in find_compilers():
        failure = _failure_of(compiler, target, instruction_set)
        if failure is None:
            for text in failures:
                logger.warning("%s. The native CPU kernel was compiled by %s instead.", text, compiler)
            return
        failures.append(failure)
    raise BuildError("; ".join(failures) or f"there is no C++ compiler ({REQUIRED_COMPILER})")


def cached_library(instruction_set: str) -> Path:
    """Return the path of the library for `instruction_set`, after building it if no process has done so before.

    Processes that need it at the same time wait for one of them to build it. Its name depends on the sources, the
    flags and CXX, so that a change of any of them leads to a new build. If that fails, a library that another compiler
    has built from the same sources is used.

    Raises:
        BuildError: there is no compiler, all of them failed, or the cache cannot be written.
    """
    if not _is_posix():
        raise BuildError(f"there is no build for {sys.platform}")
    folder, name = cache_folder(), f"{instruction_set}-{_digest(instruction_set)}"
    cxx = os.environ.get("CXX")
    target = folder / f"{name}-{hashlib.sha256(cxx.encode()).hexdigest()[:8] if cxx else 'default'}.so"
    if target.exists():
        return target
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with _locked(target.with_suffix(".lock")):
            if not target.exists():
                logger.info("Compiling the native CPU kernel, once for this machine: %s", target)
                build_library(target, instruction_set)
        return target
    except BuildError as error:
        reason = error
    except OSError as error:
        reason = BuildError(f"the cache {folder} cannot be used: {error}")
    others = sorted(folder.glob(f"{name}-*.so")) if folder.is_dir() else []
    if not others:
        raise reason
    return others[0]


def cache_folder() -> Path:
    """Return the folder for built libraries: below XDG_CACHE_HOME, or ~/.cache.

    Raises:
        BuildError: there is no home directory.
    """
    try:
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "acmix_zoo" / "native"
    except RuntimeError as error:  # a container may run as a user whom the system does not know
        raise BuildError(f"there is no folder for the library ({error}). Set HOME or XDG_CACHE_HOME") from error


@lru_cache(maxsize=8)
def _version(command: tuple[str, ...]) -> str:
    try:
        return subprocess.run(
            [*command, "--version"], capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT
        ).stdout
    except (OSError, subprocess.SubprocessError):
        return ""


def _failure_of(compiler: Compiler, target: Path, instruction_set: str) -> str | None:
    """Compile into `target`. Return None, or in one line why this failed now or before."""
    log = target.with_name(f"{instruction_set}-{_digest(instruction_set, *compiler.command, compiler.version)}.log")
    if not _is_recent(log):
        command = [*compiler.command, *_FLAGS, *INSTRUCTION_SETS[instruction_set], str(SOURCES / "acmix.cpp")]
        descriptor, temporary = tempfile.mkstemp(dir=target.parent, suffix=".so")
        os.close(descriptor)
        try:
            done = subprocess.run(
                [*command, "-o", temporary], capture_output=True, encoding="utf-8", errors="replace", timeout=_TIMEOUT
            )
            output = done.stderr or f"exit status {done.returncode}"
            if done.returncode == 0:
                Path(temporary).chmod(0o755)
                os.replace(temporary, target)
                log.unlink(missing_ok=True)
                return None
        except subprocess.TimeoutExpired:  # which is not remembered, because the machine may have been busy
            return f"{compiler} had not finished after {_TIMEOUT} seconds"
        except OSError as error:
            output = str(error)
        finally:
            Path(temporary).unlink(missing_ok=True)
        log.write_text(f"{shlex.join(command)}\n{output}\n", encoding="utf-8")
    lines = log.read_text(encoding="utf-8").splitlines()[1:]
    first = next((line for line in lines if "error" in line.lower()), lines[0] if lines else "it printed nothing")
    return f"{compiler} failed: {first.strip().replace(f'{SOURCES}{os.sep}', '')[:200]} (see {log})"


def _is_recent(log: Path) -> bool:
    """Return whether a log file tells about a failure of the last day. It is empty if the disk was full."""
    return log.exists() and log.stat().st_size > 0 and time.time() - log.stat().st_mtime < _REMEMBERED_SECONDS


def _digest(instruction_set: str, *more: str) -> str:
    """Return a hash of the sources, the flags, the kind of machine and more."""
    digest = hashlib.sha256((platform.machine() + "".join(platform.libc_ver())).encode())
    for text in (*_FLAGS, *INSTRUCTION_SETS[instruction_set], *more):
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
