"""Run one pass of a contestant, and measure its time and GPU memory."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

from acmix_zoo.bench.candidates import Case, backend, build, layout


class Pass:
    """One pass of a case: forward in inference mode, or forward and backward. Call it to run the pass.

    On a GPU, a call returns as soon as the work is queued.
    """

    def __init__(self, case: Case) -> None:
        module, shape = build(case)
        self.case, self.module = case, module
        self._forward = torch.compile(module) if case.contestant.endswith("+compile") else module
        dtype = torch.float32 if case.autocast else getattr(torch, case.dtype)
        x = torch.randn(case.batch, *shape, device=case.device, dtype=dtype)
        self._x = x.contiguous(memory_format=layout(case))
        self._grad: torch.Tensor | None = None

    def __call__(self) -> None:
        case = self.case
        with backend(case), torch.set_grad_enabled(case.train):
            # Feature maps need a gradient; images do not.
            x = self._x.requires_grad_(case.train and self._x.shape[1] > 3)
            with torch.autocast(case.device_type, getattr(torch, case.dtype), enabled=case.autocast):
                out = self._forward(x)
            if case.train:
                if self._grad is None:
                    self._grad = torch.ones_like(out) / out.numel()
                self.module.zero_grad()
                out.backward(self._grad)

    def release(self) -> None:
        """Free the gradients of the last call."""
        self.module.zero_grad()
        self._x.grad = None


def times(runs: Sequence[Pass], repeats: int) -> list[list[float]]:
    """Return the milliseconds of every round of every pass, interleaved, after warming up each pass."""
    torch.set_num_threads(runs[0].case.threads)
    spent: list[list[float]] = [[] for _ in runs]
    for repeat in range(repeats + 1):
        for run, ms in zip(runs, spent, strict=True):
            found = _round(run)
            if repeat:
                ms += found
    return spent


def _round(run: Pass, seconds: float = 0.1) -> list[float]:
    """Return the milliseconds of each pass in one round.

    Short passes run several times per round. Otherwise they would only be measured with the cold caches that a long
    pass leaves behind.
    """
    if run.case.device_type == "cuda":
        return _queued_round(run, seconds)
    found: list[float] = []
    until = time.perf_counter() + seconds
    while not found or time.perf_counter() < until:
        start = time.perf_counter()
        run()
        synchronise(run.case.device)
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _queued_round(run: Pass, seconds: float) -> list[float]:
    """Like `_round`, but measured with CUDA events between passes that are queued without waiting, as in training."""
    start = time.perf_counter()
    run()
    torch.cuda.synchronize()
    passes = min(max(round(seconds / (time.perf_counter() - start)), 1), 100)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(passes + 1)]
    events[0].record()
    for event in events[1:]:
        run()
        event.record()
    torch.cuda.synchronize()
    return [float(a.elapsed_time(b)) for a, b in pairwise(events)]


def synchronise(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if device != "cpu":
        torch.accelerator.synchronize()


def gpu_peak(run: Pass) -> float:
    """Return the GPU memory in MiB that one pass needs above weights and input, as counted by PyTorch's allocator."""
    run()  # warm up: workspaces, constants and compiled code stay allocated
    run.release()
    torch.cuda.synchronize()
    torch.cuda.reset_peak_memory_stats()
    resting = torch.cuda.memory_allocated()
    run()
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - resting) / 2**20
