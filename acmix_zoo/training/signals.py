"""Signals that ask a run to save and stop, and the requeueing of a SLURM job.

Lightning's own handlers save at once, in the middle of a step, and talk to the other processes from within the handler.
Here a handler only notes the signal, and the processes agree between two steps, so that all save the same state.
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

import lightning as L
import torch
from torch import distributed

# SIGUSR1 is what recipes/hardware/slurm.sbatch asks SLURM to send before the time is up.
_HANDLED = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGUSR1") if hasattr(signal, name)]


class Interrupted(SystemExit):
    """Ends a run after its state has been saved, with the shell's exit code for the signal."""


@contextmanager
def ending_on_sigterm() -> Iterator[None]:
    """Let SIGTERM end the program with exit code 143.

    Lightning only notes SIGTERM and ends at the next training step. Reading the data before the first step, or an
    evaluation, can take much longer than a cluster waits before it kills a job. During training, `Signals` takes over.
    """
    default = signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    if not default or threading.current_thread() is not threading.main_thread():
        yield
        return

    resends: list[threading.Timer] = []

    def end(number: int, frame: FrameType | None) -> None:
        if not resends:
            print("\nacmix-zoo: stopped by SIGTERM", file=sys.stderr, flush=True)
        raise Interrupted(128 + signal.SIGTERM)

    def send_again(lost: sys.UnraisableHookArgs) -> None:
        """Send SIGTERM again if Python dropped the exception, as it does in destructors and weak-reference callbacks.

        The second one may be dropped, too, and is then also sent again.
        """
        if isinstance(lost.exc_value, Interrupted):
            resends.append(threading.Timer(0.05, os.kill, (os.getpid(), signal.SIGTERM)))
            resends[-1].start()
        else:
            previous(lost)

    previous, sys.unraisablehook = sys.unraisablehook, send_again
    signal.signal(signal.SIGTERM, end)
    try:
        yield
    finally:
        for timer in resends:
            timer.cancel()
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        sys.unraisablehook = previous


class Signals:
    """Notes SIGINT, SIGTERM and SIGUSR1 between `take` and `release`. A second SIGINT raises KeyboardInterrupt.

    Attributes:
        number: the signal that was received, or None.
    """

    def __init__(self) -> None:
        self.number: int | None = None
        self._handlers: dict[int, Any] = {}
        # a result that is being copied from the device to the host, and the event that marks its arrival
        self._pending: tuple[torch.Tensor, Any] | None = None

    def take(self) -> None:
        """Install the handlers, if this is the main thread."""
        self._pending = None
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                self._handlers[number] = signal.signal(number, self._note)

    def release(self) -> None:
        """Restore the former handlers."""
        while self._handlers:
            signal.signal(*self._handlers.popitem())

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self.number = number
        reason = "Interrupted" if number == signal.SIGINT else signal.Signals(number).name
        print(f"\n{reason}: finishing the step, then saving (Ctrl-C again to stop at once)", flush=True)

    def agree(self, device: torch.device, *others: bool | torch.Tensor) -> list[int]:
        """Return the highest signal that any process has received, or 0, followed by one number for each of `others`:
        1 if it is true in any process.

        All processes have to call this. It costs one small message per step.
        """
        return self._read(self._reduce(device, others))

    def agree_delayed(self, device: torch.device, *others: bool | torch.Tensor) -> list[int]:
        """Return what `agree` returns. On an asynchronous device, return the result for the previous call instead.

        This way the host does not wait for the step that it has just queued. The first result consists of zeros.
        """
        values = self._reduce(device, others)
        if not self.is_delayed(device):
            return self._read(values)
        previous, self._pending = self._pending, self._send(values)
        return self._receive(previous) if previous else [0] * len(values)

    def flush_pending(self) -> list[int]:
        """Return the result that the next `agree_delayed` would return, or [] if there is none."""
        pending, self._pending = self._pending, None
        return self._receive(pending) if pending else []

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
        # a signal that arrived while this process waited for the others is kept for the next step
        self.number = max(found[0], self.number or 0) or None
        return found

    @staticmethod
    def is_delayed(device: torch.device) -> bool:
        """Return whether results are delayed by a step, because reading a value of this step would wait for it."""
        return device.type == "cuda"

    @staticmethod
    def _send(values: torch.Tensor) -> tuple[torch.Tensor, Any]:
        host = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
        host.copy_(values, non_blocking=True)
        done = torch.cuda.Event()
        done.record()
        return host, done

    def _receive(self, sent: tuple[torch.Tensor, Any]) -> list[int]:
        values, done = sent
        done.synchronize()
        return self._read(values)


def exit_after_signal(trainer: L.Trainer, number: int) -> None:
    """Exit with the code of a signal, unless `number` is 0. After SIGUSR1, requeue the SLURM job first.

    All processes call this together, with the same signal.

    Raises:
        Interrupted: `number` is not 0.
    """
    if number:
        if number == getattr(signal, "SIGUSR1", None) and trainer.is_global_zero:
            requeue()
        trainer.strategy.barrier("requeue")  # srun kills the other tasks when the first one ends
        raise Interrupted(128 + number)


def requeue() -> None:
    """Ask SLURM to start the job again, if this process belongs to one. Print the outcome, and never fail."""
    job = os.environ.get("SLURM_ARRAY_JOB_ID")
    job = f"{job}_{os.environ.get('SLURM_ARRAY_TASK_ID')}" if job else os.environ.get("SLURM_JOB_ID")
    if not job:
        return
    try:
        command = ["scontrol", "requeue", job]
        subprocess.run(command, check=True, capture_output=True, encoding="utf-8", errors="replace", timeout=60)
        print(f"Requeued SLURM job {job}", flush=True)
    except (OSError, subprocess.SubprocessError) as error:
        detail = (getattr(error, "stderr", "") or str(error)).strip()
        print(
            f"Warning: could not requeue SLURM job {job}: {detail}. The state is saved. To resume, run `scontrol "
            f"requeue {job}` or submit the job again",
            flush=True,
        )
