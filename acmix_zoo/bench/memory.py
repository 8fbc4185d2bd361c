"""Measure the peak memory of a pass, and recognise when memory runs out.

On a CPU, `cpu_peak` measures in a fresh process, because a process that has run other passes already holds memory that
the next pass can reuse. That process runs this file: `python -m acmix_zoo.bench.memory JSON`.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

import torch
from torch import nn

from acmix_zoo.bench.candidates import Candidate
from acmix_zoo.bench.passes import Pass
from acmix_zoo.layers import ACmix2d


class OutOfMemory(RuntimeError):
    """A candidate needs more memory than this machine has."""


@contextmanager
def unified_memory_errors() -> Iterator[None]:
    """Raise `OutOfMemory` instead of the different exceptions that allocators raise when memory runs out."""
    try:
        yield
    except MemoryError as error:
        raise OutOfMemory(str(error)) from error
    except RuntimeError as error:
        if (
            isinstance(error, torch.OutOfMemoryError)
            or "allocate memory" in str(error)
            or "not enough memory" in str(error)
        ):
            raise OutOfMemory(str(error).splitlines()[0]) from error
        raise


def cpu_peak(candidate: Candidate) -> float:
    """Return the memory in MiB that one pass needs in a fresh process, in addition to that of the idle process.

    Raises:
        OutOfMemory: there is not enough memory, or the system killed the process because of it.
        RuntimeError: the process failed for a different reason.
    """
    done = subprocess.run(
        [sys.executable, "-m", "acmix_zoo.bench.memory", json.dumps(asdict(candidate))],
        capture_output=True,
        encoding="utf-8",
        env={**os.environ, "OMP_NUM_THREADS": str(candidate.threads)},
    )
    if done.returncode == -9 or "OutOfMemory" in done.stderr:
        raise OutOfMemory(
            f"{candidate.name} does not fit into memory at batch {candidate.batch}. Use a smaller image or network"
        )
    if done.returncode:
        raise RuntimeError(f"bench: the process that measures the memory of {candidate.name} failed:\n{done.stderr}")
    return float(done.stdout)


def gpu_peak(one_pass: Pass) -> float:
    """Return the GPU memory in MiB that one pass needs in addition to weights and input, by PyTorch's allocator."""
    one_pass()  # warm up: workspaces, constants and compiled code stay allocated
    one_pass.release()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resting = torch.cuda.memory_allocated()
    one_pass()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - resting) / 2**20


def _peak_of_this_process(candidate: Candidate) -> float:
    """Return the MiB that one pass needs. This is only meaningful in a process that has not done anything else."""
    torch.set_num_threads(candidate.threads)
    one_pass = Pass(candidate)
    _warm_up(candidate)
    # Do not use getrusage: its maximum is inherited from the process that started this one.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak to the current resident size
    resting = read_status("VmRSS")
    one_pass()
    return read_status("VmHWM") - resting


def _warm_up(candidate: Candidate) -> None:
    """Run small layers, so that code, thread pools and small buffers are loaded and do not count as the candidate's."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), ACmix2d(4, 8)).train(candidate.train)
    with torch.set_grad_enabled(candidate.train):
        out = layers(torch.randn(1, 4, 40, 40))
        if candidate.train:
            out.sum().backward()


def read_status(field: str) -> float:
    """Return a field of Linux's status of this process, in MiB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


if __name__ == "__main__":
    with unified_memory_errors():
        sys.stdout.write(f"{_peak_of_this_process(Candidate(**json.loads(sys.argv[1])))}\n")
