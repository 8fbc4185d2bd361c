"""Real trainings in processes of their own: started, killed, joined over networks, compared to the bit."""

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
# Handwritten digits, real and at hand; a Swin without batch norm; nothing that draws by process.
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
    """The arguments of `acmix-zoo`; in `changes` double underscores stand for dots, None leaves a setting out."""
    settings = {**base, "run.folder": folder, "ckpt_path": "last"}
    settings |= {key.replace("__", "."): value for key, value in changes.items()}
    return ["fit", *(f"--{key}={value}" for key, value in settings.items() if value is not None)]


def command(arguments: Sequence[str]) -> list[str]:
    return [PYTHON, "-m", "acmix_zoo.cli", *arguments]


def torchrun(arguments: Sequence[str], processes: int, *options: str) -> list[str]:
    where = ["--standalone"] if not any(o.startswith("--rdzv") for o in options) else []
    head = [PYTHON, "-m", "torch.distributed.run", f"--nproc-per-node={processes}", *where, *options]
    return [*head, "-m", "acmix_zoo.cli", *arguments]


class Process:
    """A command in a session of its own, with one thread a process; what it says goes into a file."""

    def __init__(self, words: Sequence[str], log: Path, env: dict[str, str] | None = None) -> None:
        self.log = log
        environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONUNBUFFERED": "1", **(env or {})}
        with log.open("w") as file:
            self.popen = subprocess.Popen(
                list(words), stdout=file, stderr=subprocess.STDOUT, env=environment, start_new_session=True
            )

    @property
    def said(self) -> str:
        return self.log.read_text(errors="replace")

    def wait_for(self, words: str, seconds: float = 180) -> bool:
        """Until the process says `words`; False if it ends before."""
        until = time.monotonic() + seconds
        while words not in self.said:
            if self.popen.poll() is not None:
                return words in self.said
            assert time.monotonic() < until, f"{words!r} did not come:\n{self.said}"
            time.sleep(0.02)
        return True

    def kill(self) -> None:
        """Kill -9, with all the processes it started; torchrun's have sessions of their own."""
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
        """Wait for its end; returns what it said."""
        try:
            found = self.popen.wait(seconds)
        except subprocess.TimeoutExpired:
            self.kill()
            raise AssertionError(f"does not end:\n{self.said}") from None
        assert found == code, f"ended with {found}:\n{self.said}"
        return self.said


def run(words: Sequence[str], log: Path, env: dict[str, str] | None = None, code: int = 0) -> str:
    return Process(words, log, env).end(code)


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
    """What is not the same to the bit in two checkpoints."""
    one, two = tensors(a), tensors(b)
    assert len(one) > 20
    both = one.keys() & two.keys()
    return sorted(one.keys() ^ two.keys()) + [key for key in both if not torch.equal(one[key], two[key])]


def largest_difference(a: Path, b: Path) -> float:
    one, two = (torch.load(path, weights_only=True)["state_dict"] for path in (a, b))
    assert one.keys() == two.keys()
    return max(float((one[key].double() - two[key].double()).abs().max()) for key in one)


# ---- a disk that is full


@contextlib.contextmanager
def small_disk(place: Path, megabytes: int) -> Iterator[Path]:
    """A real file system of its own in memory; for root, on Linux."""
    place.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={megabytes}m", "tmpfs", str(place)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    try:
        yield place
    finally:
        subprocess.run(["umount", "-l", str(place)], check=True)


def fill(filler: Path) -> None:
    with filler.open("ab") as file, pytest.raises(OSError):
        while True:
            os.write(file.fileno(), b"0" * 4096)


# ---- two machines


@dataclass
class Node:
    """Where a torchrun agent runs: what comes before its command, its network interface and address."""

    prefix: list[str]
    interface: str
    address: str
    namespace: str

    def kill(self) -> None:
        """As if the power went: everything in it, agent and training."""
        pids = subprocess.run(["ip", "netns", "pids", self.namespace], capture_output=True, text=True, check=True)
        for pid in pids.stdout.split():
            with contextlib.suppress(ProcessLookupError):
                os.kill(int(pid), signal.SIGKILL)


@contextlib.contextmanager
def two_nodes() -> Iterator[list[Node]]:
    """Two network namespaces joined by a cable."""
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
    return (
        shutil.which("ip") is not None
        and os.geteuid() == 0
        and (
            subprocess.run(["ip", "netns", "add", "acmixtry"], capture_output=True).returncode == 0
            and subprocess.run(["ip", "netns", "del", "acmixtry"], capture_output=True).returncode == 0
        )
    )
