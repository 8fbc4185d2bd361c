"""Measure time and memory of networks and single layers side by side.

All candidates run in one process and take turns, round after round. The reported times are medians and quartiles over
the rounds. Peak memory is that of one pass in a fresh process, minus the memory of the idle process. On a GPU it is
what PyTorch's allocator uses above weights and input, and times are measured with CUDA events.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import replace

import torch

from acmix_zoo.bench.aggregation_candidates import Aggregation
from acmix_zoo.bench.candidates import DEPLOY, Built, Candidate, build, parse_name
from acmix_zoo.bench.memory import OutOfMemory, cpu_peak, gpu_peak, unified_memory_errors
from acmix_zoo.bench.passes import Pass, measure_times
from acmix_zoo.bench.results import Row
from acmix_zoo.layers.complexity import complexity, run_once
from acmix_zoo.ops.peak import matmul_peak


def measure(
    candidates: Sequence[Candidate], rounds: int = 7, with_memory: bool = True, matmul_gflops: float | None = None
) -> list[Row]:
    """Measure candidates of the same batch, threads, dtype and device against each other.

    If one of them runs out of memory, all of them are measured again with half the batch. The rows state the batch.

    Args:
        candidates: what to measure. The rows are in the same order.
        rounds: number of rounds over all candidates.
        with_memory: whether to measure peak memory, which takes one process per candidate on a CPU.
        matmul_gflops: GFLOP/s of this machine's matrix product, if `matmul_peak` has already been called.

    Raises:
        OutOfMemory: not even a batch of one fits.
        ValueError, FileNotFoundError: unknown candidate.
    """
    for candidate in candidates:  # report a wrong name or size before the first measurement
        _check_size(candidate, _build_without_memory(candidate))
    while True:
        try:
            with unified_memory_errors():
                times, peaks = _measure_once(candidates, rounds, with_memory)
            break
        except OutOfMemory:
            if candidates[0].batch == 1:
                raise
            candidates = [replace(candidate, batch=candidate.batch // 2) for candidate in candidates]
        if candidates[0].device_type == "cuda":
            torch.cuda.empty_cache()
    first = candidates[0]
    gflops = matmul_gflops or matmul_peak(first.threads, first.dtype, first.device)
    return [_make_row(c, ms, mib, gflops) for c, ms, mib in zip(candidates, times, peaks, strict=True)]


def _measure_once(
    candidates: Sequence[Candidate], rounds: int, with_memory: bool
) -> tuple[list[list[float]], list[float]]:
    """Return the milliseconds of every pass and the peak MiB of each candidate."""
    peaks = [float("nan")] * len(candidates)
    is_cuda = candidates[0].device_type == "cuda"
    if with_memory and not is_cuda:
        peaks = [cpu_peak(candidate) for candidate in candidates]
    passes = [Pass(candidate) for candidate in candidates]
    if with_memory and is_cuda:
        peaks = [gpu_peak(one_pass) for one_pass in passes]
    return measure_times(passes, rounds), peaks


def _build_without_memory(candidate: Candidate) -> Built:
    """Build the candidate without allocating memory for its tensors."""
    with torch.device("meta"):
        return build(replace(candidate, device="meta"))


def _check_size(candidate: Candidate, built: Built) -> None:
    """Raise a ValueError if a network cannot process images of the size that was asked for."""
    if not candidate.size or parse_name(candidate.name).backend == "released":  # which needs tensors with values
        return
    try:
        run_once(built.module, built.input_shape)
    except Exception as error:  # whatever the layers of any network raise
        size = "×".join(map(str, built.input_shape[1:]))
        raise ValueError(
            f"bench: {candidate.name} does not work with images of {size} pixels ({error}). Use another size"
        ) from error


def _make_row(candidate: Candidate, milliseconds: list[float], peak_mib: float, matmul_gflops: float) -> Row:
    # Count the ACmix layer in place of the authors' code, whose products and sums torch's counter does not see, and in
    # place of a deployed graph, on which hooks do not run.
    name = candidate.name.replace("released:", "acmix2d:").replace("@released", "").replace(DEPLOY, "")
    module, shape = _build_without_memory(replace(candidate, name=name))
    macs = module.macs if isinstance(module, Aggregation) else complexity(module, shape).macs
    q1, median, q3 = statistics.quantiles(milliseconds, n=4) if len(milliseconds) > 1 else [milliseconds[0]] * 3
    # A backward pass has twice the arithmetic of a forward pass.
    gflops = 2 * macs * candidate.batch * (3 if candidate.train else 1) / median / 1e6
    return Row(
        candidate=candidate.name,
        mode="training" if candidate.train else "inference",
        threads=candidate.threads,
        dtype=candidate.dtype,
        batch=candidate.batch,
        input="×".join(map(str, shape)),
        ms=round(median, 3),
        ms_q1=round(q1, 3),
        ms_q3=round(q3, 3),
        images_per_s=round(candidate.batch / median * 1e3, 2),
        peak_mib=round(peak_mib, 1),
        macs=macs,
        gflops=round(gflops, 2),
        peak_fraction=round(gflops / matmul_gflops, 4),
    )
