"""Real training runs in separate processes: start, kill and connect them, and compare their results bit by bit."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

PYTHON = sys.executable
# Real images that need no download, a network without batch norm, and no randomness that depends on the process.
PLAIN = {
    "data.source": "digits", "data.image_size": 32, "data.batch_size": 16, "data.augment": "light",
    "model.model": "acmix_swin_pico", "model.model_kwargs": "{small_input: false}",
    "model.optimizer": "sgd", "model.lr": 0.05, "model.warmup_epochs": 0.5,
    "trainer.max_epochs": 2, "trainer.limit_train_batches": 10, "trainer.accelerator": "cpu", "trainer.logger": "false",
    "speed.loader_seconds": 0,
}  # fmt: skip
# FSDP2
MESH = {
    "trainer__devices": 2, "trainer__strategy": "lightning.pytorch.strategies.ModelParallelStrategy",
    "trainer__strategy__data_parallel_size": 2, "trainer__strategy__tensor_parallel_size": 1,
}  # fmt: skip


def fit(folder: Path, base: dict[str, Any] = PLAIN, **changes: Any) -> list[str]:
    """Return the arguments of `acmix-zoo fit`. In `changes`, two underscores mean a dot, and None removes an option."""
    settings = {**base, "run.folder": folder, "ckpt_path": "last"}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["fit", *(f"--{key}={value}" for key, value in settings.items() if value is not None)]


def command(arguments: Sequence[str]) -> list[str]:
    """Return the command line of `acmix-zoo` with these arguments."""
    return [PYTHON, "-m", "acmix_zoo.cli", *arguments]


def torchrun(arguments: Sequence[str], processes: int, *options: str) -> list[str]:
    """Return the command line of torchrun that starts `acmix-zoo` in several processes."""
    rendezvous = ["--standalone"] if not any(o.startswith("--rdzv") for o in options) else []
    head = [PYTHON, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *rendezvous, *options]
    return [*head, "-m", "acmix_zoo.cli", *arguments]


class Process:
    """A command that runs in its own session, with one thread per process. Its output is written to a file."""

    def __init__(self, arguments: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                list(arguments), stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def output(self) -> str:
        """Everything that was printed so far."""
        return self.log.read_text(errors="replace")

    def wait_for(self, text: str, seconds: float = 180) -> bool:
        """Wait until the process prints a text. Return False if it ends before."""
        until = time.monotonic() + seconds
        while text not in self.output:
            if self.popen.poll() is not None:
                return text in self.output
            assert time.monotonic() < until, f"{text!r} was not printed:\n{self.output}"
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """Kill the process and all processes that it started, even those in other sessions."""
        family = [self.popen.pid]
        for pid in family:
            for children in Path(f"/proc/{pid}/task").glob("*/children"):
                with contextlib.suppress(OSError):
                    family += map(int, children.read_text().split())
        for pid in family:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.popen.wait()

    def end(self, code: int = 0, seconds: float = 400) -> str:
        """Wait until it ends with this exit code, and return its output."""
        try:
            found = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"the process did not end:\n{self.output}") from None
        assert found == code, f"expected exit code {code}, got {found}:\n{self.output}"
        return self.output


def run(arguments: Sequence[str], log: Path, env: dict[str, str] | None = None, code: int = 0) -> str:
    """Run a command to its end, and return its output."""
    return Process(arguments, log, env).end(code)


# ---- comparing


def tensors(path: Path) -> dict[str, Tensor]:
    """Return everything in a checkpoint that a resumed run uses, by its key: weights, averages, optimiser, schedule."""

    def walk(value: Any, name: str) -> Iterator[tuple[str, Tensor]]:
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, dict):
            for key, inner in value.items():
                yield from walk(inner, f"{name}.{key}")
        elif isinstance(value, list | tuple):
            for place, inner in enumerate(value):
                yield from walk(inner, f"{name}[{place}]")
        elif isinstance(value, int | float):
            yield name, torch.tensor(value, dtype=torch.float64)

    content = torch.load(path, weights_only=True)
    parts = ("state_dict", "current_model_state", "averaging_state", "optimizer_states", "lr_schedulers", "global_step")
    return dict(walk({part: content[part] for part in parts if part in content}, ""))


def differences(a: Path, b: Path) -> list[str]:
    """Return the names of tensors that differ in two checkpoints."""
    one, two = tensors(a), tensors(b)
    assert len(one) > 20
    both = one.keys() & two.keys()
    return sorted(one.keys() ^ two.keys()) + [key for key in both if not torch.equal(one[key], two[key])]


def largest_difference(a: Path, b: Path) -> float:
    """Return the largest absolute difference of the weights in two checkpoints."""
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[key].double() - two[key].double()).abs().max()) for key in one)


# ---- full disks


@contextlib.contextmanager
def small_disk(folder: Path, megabytes: int) -> Iterator[Path]:
    """Mount a small file system in memory. This needs root and Linux."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def fill(filler: Path) -> None:
    """Append to a file until the disk is full."""
    with filler.open("ab") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), b"0" * 4096)


# ---- two machines


@dataclass
class Node:
    """A machine for a torchrun agent: the prefix of its commands, its network interface and its address."""

    prefix: list[str]
    interface: str
    address: str
    namespace: str

    def kill(self) -> None:
        """Kill everything that runs on the machine, as a power failure does."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Connect two network namespaces by a virtual cable."""
    names, wires = ("acmix0", "acmix1"), ("acmixw0", "acmixw1")

    def ip(*words: str) -> None:
        subprocess.run(["ip", *words], check=True, capture_output=True)

    def clear() -> None:
        for name in names:
            subprocess.run(["ip", "netns", "del", name], capture_output=True)

    clear()
    try:
        for name in names:
            ip("netns", "add", name)
        ip("link", "add", wires[0], "netns", names[0], "type", "veth", "peer", "name", wires[1], "netns", names[1])
        for number, (name, wire) in enumerate(zip(names, wires, strict=True)):
            ip("-n", name, "addr", "add", f"10.213.7.{number + 1}/24", "dev", wire)
            ip("-n", name, "link", "set", wire, "up")
            ip("-n", name, "link", "set", "lo", "up")
        yield [
            Node(["ip", "netns", "exec", name], wire, f"10.213.7.{number + 1}", name)
            for number, (name, wire) in enumerate(zip(names, wires, strict=True))
        ]
    finally:
        clear()


def can_make_networks() -> bool:
    """Return whether this process may create network namespaces."""
    return (
        shutil.which("ip") is not None
        and os.geteuid() == 0
        and (
            subprocess.run(["ip", "netns", "add", "acmixtry"], capture_output=True).returncode == 0
            and subprocess.run(["ip", "netns", "del", "acmixtry"], capture_output=True).returncode == 0
        )
    )
