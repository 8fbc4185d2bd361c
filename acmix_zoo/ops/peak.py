"""Measure the peak throughput of this machine's matrix products, an upper bound for every network."""

import time
from collections.abc import Sequence

import torch


def matmul_peak(
    threads: int,
    dtype: str = "float32",
    device: str = "cpu",
    sizes: Sequence[tuple[int, int]] = ((1024, 12), (2048, 4)),
) -> float:
    """Return this machine's peak throughput in GFLOP/s: the best of several products of square matrices.

    Args:
        threads: number of CPU threads, which are set for the process.
        dtype: name of the dtype.
        device: where to run.
        sizes: pairs of (side length, repeats).
    """
    torch.set_num_threads(threads)
    best = 0.0
    for n, repeats in sizes:
        a = torch.randn(n, n, device=device, dtype=getattr(torch, dtype))
        for _ in range(repeats):
            start = time.perf_counter()
            torch.mm(a, a)
            if device.startswith("cuda"):
                torch.cuda.synchronize(device)
            best = max(best, 2 * n**3 / (time.perf_counter() - start) / 1e9)
    return best
