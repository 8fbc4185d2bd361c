"""Signals that ask a run to save and stop, and the requeueing of a SLURM job.

Lightning's own handlers save at once, in the middle of a step, and talk to the other processes from within the handler.
Here a signal is only noted; processes agree between two steps, so that all save the same state.
"""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType
from typing import Any

import torch
from torch import distributed

# SIGUSR1 is what recipes/hardware/slurm.sbatch asks SLURM to send before the time is up.
ASKING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(SystemExit):
    """Ends a run after its state has been saved; the exit code is the shell's for the signal."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program with exit code 143 instead of being noted and forgotten.

    Lightning only notes SIGTERM and ends at the next training step. Reading the data before the first step, or an
    evaluation, can take much longer than a cluster waits before it kills. During training, `Signals` takes over.
    """
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return

    def end(number: int, frame: FrameType | None) -> None:
        print("\nacmix-zoo: stopped by SIGTERM", file=sys.stderr, flush=True)
        raise Interrupted(128 + signal.SIGTERM)

    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1 from `take` to `release`; a second SIGINT ends at once."""

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers: dict[int, Any] = {}
        self._pending: tuple[torch.Tensor, Any] | None = None  # on its way to the host, and the event of its arrival

    def take(self) -> None:
        """Take the signals over, if this is the main thread."""
        self._pending = None
        if threading.current_thread() is threading.main_thread():
            for number in ASKING:
                self._handlers[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Give the signals back to whoever had them."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        print(
            f"\n{signal.Signals(number).name}: finishing the step, then saving (Ctrl-C again: stop at once)", flush=True
        )

    def agree(self, device: torch.device, *others: bool | torch.Tensor) -> list[int]:
        """[the highest signal that any process got, or 0, then whether each of `others` is true for any process].

        With one process nothing is sent; with more, all of them have to call this: it is one small message a step.
        """
        return self._read(self._reduce(device, others))

    def agree_behind(self, device: torch.device, *others: bool | torch.Tensor) -> list[int]:
        """Like `agree`, but on an asynchronous device return the result of the previous call. The host then waits for
        work that is already done instead of the step that it has just queued. The first result is all zero."""
        values = self._reduce(device, others)
        if not self.is_behind(device):
            return self._read(values)
        before, self._pending = self._pending, self._send(values)
        return self._arrived(before) if before else [0] * len(values)

    def settle(self) -> list[int]:
        """Return the result of `agree_behind` that is still pending; [] if there is none."""
        before, self._pending = self._pending, None
        return self._arrived(before) if before else []

    def _reduce(self, device: torch.device, others: tuple[bool | torch.Tensor, ...]) -> torch.Tensor:
        # filled on the device, because copying a tensor to a GPU makes the host wait for all queued work
        values = torch.zeros(1 + len(others), dtype=torch.int64, device=device)
        values[0] = self.number or 0
        for place, other in enumerate(others):
            values[place + 1] = other
        if distributed.is_available() and distributed.is_initialized() and distributed.get_world_size() > 1:
            distributed.all_reduce(values, distributed.ReduceOp.MAX)
        return values

    def _read(self, values: torch.Tensor) -> list[int]:
        found: list[int] = values.tolist()
        # one that came while the others were waited for is not forgotten: the next step agrees on it
        self.number = max(found[0], self.number or 0) or None
        return found

    @staticmethod
    def is_behind(device: torch.device) -> bool:
        """Whether a device runs asynchronously, so that reading a value of the current step would wait for it."""
        return device.type == "cuda"

    @staticmethod
    def _send(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return host, done

    def _arrived(self, sent: tuple[torch.Tensor, Any]) -> list[int]:
        values, done = sent
        done.synchronize()
        return self._read(values)


def requeue() -> None:
    """Have SLURM start the job again, if this process is of a SLURM job; says what was done, and never fails."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        command = ["scontrol", "requeue", job]
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
        print(f"SLURM job {job} is queued again", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()
        print(f"NOT QUEUED AGAIN: {detail}. The state is saved: scontrol requeue {job}, or sbatch again", flush=True)
