"""Run one pass of a candidate, and measure how long it takes."""

from __future__ import annotations

import time
from collections.abc import Sequence
from itertools import pairwise

import torch

from acmix_zoo.bench.candidates import Candidate, build, memory_format, parse_name, use_candidate_backend


class Pass:
    """One pass of a candidate: forward in inference mode, or forward and backward. Call it to run the pass.

    On a GPU, a call returns as soon as the work is queued.
    """

    def __init__(self, candidate: Candidate) -> None:
        module, shape = build(candidate)
        self.candidate, self.module = candidate, module
        self._forward = torch.compile(module) if parse_name(candidate.name).is_compiled else module
        dtype = torch.float32 if candidate.autocast else getattr(torch, candidate.dtype)
        x = torch.randn(candidate.batch, *shape, device=candidate.device, dtype=dtype)
        self._x = x.contiguous(memory_format=memory_format(candidate))
        self._grad: torch.Tensor | None = None

    def __call__(self) -> None:
        candidate = self.candidate
        with use_candidate_backend(candidate), torch.set_grad_enabled(candidate.train):
            # Feature maps need a gradient; images do not.
            x = self._x.requires_grad_(candidate.train and self._x.shape[1] > 3)
            with torch.autocast(candidate.device_type, getattr(torch, candidate.dtype), enabled=candidate.autocast):
                out = self._forward(x)
            if candidate.train:
                if self._grad is None:
                    self._grad = torch.ones_like(out) / out.numel()
                self.module.zero_grad()
                out.backward(self._grad)

    def release(self) -> None:
        """Free the gradients of the last call."""
        self.module.zero_grad()
        self._x.grad = None


def measure_times(passes: Sequence[Pass], rounds: int) -> list[list[float]]:
    """Return the milliseconds that each pass took, after one round of warm-up.

    The passes take turns, round after round, so that a change in the machine's speed affects all of them.
    """
    torch.set_num_threads(passes[0].candidate.threads)
    times: list[list[float]] = [[] for _ in passes]
    for number in range(rounds + 1):
        for one_pass, milliseconds in zip(passes, times, strict=True):
            found = _run_round(one_pass)
            if number:
                milliseconds += found
    return times


def _run_round(one_pass: Pass, seconds: float = 0.1) -> list[float]:
    """Return the milliseconds of each pass in one round.

    Short passes run several times per round. Otherwise they would only be measured with the cold caches that a long
    pass leaves behind.
    """
    if one_pass.candidate.device_type == "cuda":
        return _run_cuda_round(one_pass, seconds)
    found: list[float] = []
    until = time.perf_counter() + seconds
    while not found or time.perf_counter() < until:
        start = time.perf_counter()
        one_pass()
        synchronise(one_pass.candidate.device)
        found.append((time.perf_counter() - start) * 1e3)
    return found


def _run_cuda_round(one_pass: Pass, seconds: float) -> list[float]:
    """Return the same as `_run_round`, measured with CUDA events between passes that are queued as in training."""
    start = time.perf_counter()
    one_pass()
    torch.cuda.synchronize()
    count = min(max(round(seconds / (time.perf_counter() - start)), 1), 100)
    events = [torch.cuda.Event(enable_timing=True) for _ in range(count + 1)]
    events[0].record()
    for event in events[1:]:
        one_pass()
        event.record()
    torch.cuda.synchronize()
    return [float(before.elapsed_time(after)) for before, after in pairwise(events)]


def synchronise(device: str) -> None:
    """Wait until the device has finished all queued work."""
    if torch.device(device).type != "cpu":
        torch.accelerator.synchronize()
