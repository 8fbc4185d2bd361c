"""Time and memory of networks and of single layers, measured side by side.

A contestant is written as a network's name (ours or timm's), or `KIND:CHANNELSxSIZE[sSTRIDE]` for a single layer. KIND
is acmix2d, released (the authors' way of computing it), conv3x3, or shift-tensor, shift-frozen and shift-learnable (the
same convolution as projections, shift and sum, see `acmix_zoo.bench.decomposition`). SAN's weighted sums alone, over
7×7 or other neighbourhoods, are `aggregate:CHANNELSxSIZE[kKERNEL]`, and `unfold:…` in the form that copies the value.
`@reference` runs ACmix layers on the readable operators, `@global`, `@tiles` and `@offset` on that backend, `@tile8x16`
on tiles of 8×16 queries; `@released` replaces them by the authors' implementation; `+compile` compiles:

    acmix_resnet50   acmix_resnet50@released   resnet50   acmix2d:64x56   released:64x56   acmix2d:128x56s2
    aggregate:64x56   unfold:64x56   aggregate:16x112k3

All contestants run in one process, one after the other, round after round; figures are medians and quartiles of the
rounds. Peak memory is what one pass in a fresh process needs above the idle state. On a GPU it is the memory that
PyTorch's allocator uses above weights and input, and times are measured with CUDA events.
"""

from __future__ import annotations

import json
import os
import statistics
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import nn

from acmix_zoo.bench.aggregation_cases import Aggregation
from acmix_zoo.bench.candidates import Case, build
from acmix_zoo.bench.passes import Pass, gpu_peak, times
from acmix_zoo.layers import ACmix2d
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.ops.peak import matmul_peak


@dataclass(frozen=True)
class Row:
    """A case and its figures: ms of a pass (median and quartiles), peak MiB, MACs of an image by their definition,
    the arithmetic done in a second and its share of what this machine reaches in a matrix product."""

    contestant: str
    mode: str
    threads: int
    dtype: str
    batch: int
    input: str
    ms: float
    ms_q1: float
    ms_q3: float
    images_per_s: float
    peak_mib: float
    macs: int
    gflops: float
    share_of_peak: float


class OutOfMemory(RuntimeError):
    """The case does not fit this machine's memory."""


def guarded(run: Callable[[], Any]) -> Any:
    """run(), with every allocator's way to say that memory ran out turned into `OutOfMemory`."""
    try:
        return run()
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


def peak(case: Case) -> float:
    """MiB that one pass takes above the resting process. Only meaningful in a process that did nothing else before."""
    torch.set_num_threads(case.threads)
    run = Pass(case)
    _warm(case)
    # Not getrusage: its maximum is inherited from the process that started this one.
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # reset the peak to the current resident size
    before = _memory("VmRSS")
    run()
    return _memory("VmHWM") - before


def _warm(case: Case) -> None:
    """Code, thread pools and small buffers are not the contestant's."""
    torch.manual_seed(0)
    layers = nn.Sequential(nn.Conv2d(4, 4, 3, 2, 1), nn.BatchNorm2d(4), ACmix2d(4, 8)).train(case.train)
    with torch.set_grad_enabled(case.train):
        out = layers(torch.randn(1, 4, 40, 40))
        if case.train:
            out.sum().backward()


def _memory(field: str) -> float:
    """MiB, from Linux's account of this process."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    return int(next(line for line in status.splitlines() if line.startswith(field)).split()[1]) / 1024


def fresh_peak(case: Case) -> float:
    """`peak` in a process of its own.

    Raises:
        OutOfMemory: it did not fit, or the system killed it for that.
    """
    command = [sys.executable, "-m", "acmix_zoo.bench.measure", json.dumps(asdict(case))]
    done = subprocess.run(
        command, capture_output=True, encoding="utf-8", env={**os.environ, "OMP_NUM_THREADS": str(case.threads)}
    )
    if done.returncode == -9 or "OutOfMemory" in done.stderr:
        raise OutOfMemory(f"{case.contestant} at batch {case.batch}")
    if done.returncode:
        raise RuntimeError(f"bench: {case.contestant} failed:\n{done.stderr}")
    return float(done.stdout)


def measure(cases: Sequence[Case], repeats: int = 7, memory: bool = True, top: float | None = None) -> list[Row]:
    """Measure cases of the same batch, threads, dtype and device against each other.

    When one of them runs out of memory, all of them are measured again with half the batch; the rows say which it was.

    Args:
        cases: what to measure; the rows are in the same order.
        repeats: number of rounds over all cases.
        memory: whether to measure peak memory, which takes one process per case on a CPU.
        top: GFLOP/s of this machine's matrix product, if `matmul_peak` has already been called.

    Raises:
        OutOfMemory: not even a batch of one fits.
        ValueError: no such contestant.
    """
    for case in cases:  # a wrong name is found before the first measurement
        _on_meta(case)
    while True:
        try:
            spent, peaks = guarded(partial(_times_and_peaks, cases, repeats, memory))
            break
        except OutOfMemory:
            if cases[0].batch == 1:
                raise
            cases = [replace(case, batch=case.batch // 2) for case in cases]
        if cases[0].device_type == "cuda":
            torch.cuda.empty_cache()
    top = top or matmul_peak(cases[0].threads, cases[0].dtype, cases[0].device)
    return [_row(case, ms, mib, top) for case, ms, mib in zip(cases, spent, peaks, strict=True)]


def _times_and_peaks(cases: Sequence[Case], repeats: int, memory: bool) -> tuple[list[list[float]], list[float]]:
    peaks = [float("nan")] * len(cases)
    if memory and cases[0].device_type != "cuda":
        peaks = [fresh_peak(case) for case in cases]
    runs = [Pass(case) for case in cases]
    if memory and cases[0].device_type == "cuda":
        peaks = [gpu_peak(run) for run in runs]
    return times(runs, repeats), peaks


def _on_meta(case: Case) -> tuple[nn.Module, tuple[int, int, int]]:
    """Build the case without allocating memory for its tensors."""
    with torch.device("meta"):
        return build(replace(case, device="meta"))


def _row(case: Case, ms: list[float], peak_mib: float, top: float) -> Row:
    # Of ACmix by its definition: torch's counter does not see the products and sums of the released form.
    name = case.contestant.replace("released:", "acmix2d:").replace("@released", "")
    module, shape = _on_meta(replace(case, contestant=name))
    macs = module.macs if isinstance(module, Aggregation) else complexity(module, shape).macs
    q1, median, q3 = statistics.quantiles(ms, n=4) if len(ms) > 1 else [ms[0]] * 3
    gflops = 2 * macs * case.batch * (3 if case.train else 1) / median / 1e6  # backward is two forwards' arithmetic
    return Row(
        case.contestant, "training" if case.train else "inference", case.threads, case.dtype, case.batch,
        "×".join(map(str, shape)), round(median, 3), round(q1, 3), round(q3, 3), round(case.batch / median * 1e3, 2),
        round(peak_mib, 1), macs, round(gflops, 2), round(gflops / top, 4),
    )  # fmt: skip


if __name__ == "__main__":
    print(guarded(lambda: peak(Case(**json.loads(sys.argv[1])))))
