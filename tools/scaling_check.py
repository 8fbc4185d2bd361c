"""What `acmix_zoo.scaling.step` claims, against what two processes on one machine do: writes benchmarks/scaling.csv.

    OMP_NUM_THREADS=1 python -m tools.scaling_check benchmarks/scaling.csv

Two processes of a thread each, gloo over loopback, a few minutes on two quiet cores. What is compared is interleaved,
round after round; figures are medians. All-reduces give the link's rate and latency, networks that train alone the
arithmetic, and both together say how long the networks take with DistributedDataParallel.
"""

from __future__ import annotations

import csv
import os
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch.multiprocessing.spawn import spawn
from torch.nn.parallel import DistributedDataParallel

from acmix_zoo.bench.candidates import Case, build, layout
from acmix_zoo.bench.measure import fresh_peak
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.ops.peak import matmul_peak
from acmix_zoo.scaling.activations import Activations, saved
from acmix_zoo.scaling.machines import Link, Machine
from acmix_zoo.scaling.step import Training, all_reduce, compute, step
from tools.suite import machine

NETWORKS = ("acmix_resnet26", "acmix_swin_t", "acmix_san10", "acmix_pvt_t")
SIZE, BATCH = 64, 4  # small steps, so that communication weighs
KIB = (4, 64, 1024, 4096, 16384, 65536)
MODES = ("alone", "alone, twice the batch", "both, silent", "both, DDP")


@dataclass(frozen=True)
class Check:
    """Something measured (median and quartiles) and what the plan makes of the rest."""

    check: str
    what: str
    unit: str
    measured: float
    q1: float
    q3: float
    predicted: float

    @property
    def deviation(self) -> float:
        """Of the prediction from what was measured, as a share of the latter."""
        return self.predicted / self.measured - 1


def check(name: str, what: str, unit: str, values: Sequence[float], predicted: float) -> Check:
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Check(name, what, unit, *(float(f"{x:.4g}") for x in (median, q1, q3, predicted)))


# ---- in the two processes


def timed(run: Callable[[], Any]) -> float:
    """Milliseconds, from a moment when both processes are there."""
    dist.barrier()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def time_reductions(rounds: int) -> dict[int, list[float]]:
    """Milliseconds of an all-reduce, by bytes."""
    tensors = [torch.ones(kib * 256) for kib in KIB]
    spent: dict[int, list[float]] = {t.nbytes: [] for t in tensors}
    for i in range(rounds + 2):
        for t in tensors:
            ms = timed(lambda t=t: dist.all_reduce(t.fill_(1)))  # type: ignore[misc]
            if i >= 2:
                spent[t.nbytes].append(ms)
    return spent


def time_network(name: str, rounds: int) -> dict[str, list[float]]:
    """Milliseconds of a training step in each of `MODES`."""
    case = Case(name, BATCH, SIZE, train=True, threads=1)
    module, shape = build(case)
    network = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(network.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(2 * BATCH, *shape).contiguous(memory_format=layout(case))
    y = torch.zeros(2 * BATCH, dtype=torch.long)

    def train(images: int, silent: bool) -> None:
        optimizer.zero_grad()
        used = module if silent else network  # not no_sync(): its first forward pass still waits for all processes
        F.cross_entropy(used(x[:images]), y[:images]).backward()
        optimizer.step()

    first = dist.get_rank() == 0
    runs: list[Callable[[], None]] = [
        lambda: train(BATCH, True) if first else None,
        lambda: train(2 * BATCH, True) if first else None,
        lambda: train(BATCH, True),
        lambda: train(BATCH, False),
    ]
    spent: dict[str, list[float]] = {mode: [] for mode in MODES}
    for i in range(rounds + 2):
        for mode, run in zip(MODES, runs, strict=True):
            ms = timed(run)
            if i >= 2:
                spent[mode].append(ms)
    return spent


def worker(rank: int, folder: str, networks: Sequence[str], rounds: int) -> None:
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/meet", rank=rank, world_size=2)
    found = {"reductions": time_reductions(3 * rounds)}, {name: time_network(name, rounds) for name in networks}
    if rank == 0:
        torch.save(found, f"{folder}/found.pt")
    dist.destroy_process_group()


# ---- what the plan makes of it


def fit_link(spent: dict[int, list[float]]) -> Link:
    """The rate and the latency of two messages of half the bytes each way: least squares of the relative deviation."""
    sizes = np.array(list(spent), dtype=float)
    seconds = np.array([statistics.median(ms) for ms in spent.values()]) / 1e3
    (per_byte, latency), *_ = np.linalg.lstsq(
        np.stack([sizes / seconds, 2 / seconds], 1), np.ones(len(sizes)), rcond=None
    )
    return Link(1 / per_byte, max(latency, 0.0))


def network_checks(spent: dict[str, dict[str, list[float]]], link: Link, peak: float) -> list[Check]:
    """Of every network: the batch doubled, the formula of the arithmetic, two processes, DDP."""
    here = Machine("this CPU", 0, {"float32": peak}, link, link)
    trainings = {name: training(name) for name in spent}
    alone = {name: statistics.median(modes["alone"]) / 1e3 for name, modes in spent.items()}
    shares = {name: compute(t, here, utilisation=1) / alone[name] for name, t in trainings.items()}
    mean = statistics.fmean(shares.values())
    rows = []
    for name, modes in spent.items():
        t, both = trainings[name], statistics.median(modes["both, silent"]) / 1e3
        rate = BATCH / both
        planned = step(t, here, 2, node=2, rate=rate)
        _, sending = all_reduce(4 * t.trainable, 2, here)
        rows += [
            check("doubled batch", name, "ms", modes["alone, twice the batch"], 2e3 * alone[name]),
            check("one utilisation", f"{name}: {100 * shares[name]:.0f} % of the peak", "ms", modes["alone"],
                  1e3 * compute(t, here, utilisation=mean)),
            check("two silent processes", name, "ms", modes["both, silent"], 1e3 * alone[name]),
            check("DDP", name, "ms", modes["both, DDP"], 1e3 * planned.seconds),
            check("DDP, nothing hidden", name, "ms", modes["both, DDP"], 1e3 * (both + sending)),
        ]  # fmt: skip
    return sorted(rows, key=lambda row: [c.check for c in rows].index(row.check))


def training(name: str) -> Training:
    """The network's step as the plan sees it; of memory, `memory_checks` asks."""
    module, shape = build(Case(name, BATCH, SIZE, train=True, threads=1))
    found = complexity(module, shape)
    return Training(found.params, found.params, found.macs, Activations(0, 0), BATCH, states=1)


def memory_checks(names: Sequence[str], size: int = 224, batch: int = 4) -> list[Check]:
    """Peak memory of a forward and backward pass above the resting process, against activations and gradients."""
    rows = []
    for name in names:
        case = Case(name, batch, size, train=True, threads=1)
        module, shape = build(case)
        kept = saved(module, torch.zeros(batch, *shape).contiguous(memory_format=layout(case)))
        gradients = sum(p.nbytes for p in module.parameters())
        rows.append(check("memory", name, "MiB", [fresh_peak(case)], (kept + gradients) / 2**20))
    return rows


def main(path: Path, networks: Sequence[str] = NETWORKS, rounds: int = 7) -> list[Check]:
    """Measure, write, print."""
    start = time.perf_counter()
    about = machine()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spawn(worker, (folder, tuple(networks), rounds), nprocs=2)
        reductions, spent = torch.load(f"{folder}/found.pt", weights_only=True)
    peak = 1e9 * matmul_peak(1)
    link = fit_link(reductions["reductions"])
    here = Machine("", 0, {}, link, link)
    rows = [
        check("all-reduce", f"{size / 1024:,.0f} KiB", "ms", ms, 1e3 * all_reduce(size, 2, here)[1])
        for size, ms in reductions["reductions"].items()
    ]
    rows += network_checks(spent, link, peak) + memory_checks(networks)
    said = (
        f"{about['cpu']}; {peak / 1e9:.1f} GFLOP/s a thread in a matrix product; gloo over loopback fitted as "
        f"{link.rate / 1e9:.2f} GB/s and {1e6 * link.latency:.0f} µs a message; torch {about['torch']}, "
        f"{about['date']}, in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[1]:.1f}"
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow([field.name for field in fields(Check)])
        out.writerow(["machine", said, *[""] * 5])
        out.writerows([*vars(row).values()] for row in rows)
    print(said)
    for row in rows:
        print(
            f"{row.check:22} {row.what:36} {row.measured:9.4g} {row.unit:4} {row.predicted:9.4g} {row.deviation:+.0%}"
        )
    return rows


def read_checks(path: Path) -> tuple[str, list[Check]]:
    """The line about the machine, and the checks."""
    with path.open(encoding="utf-8", newline="") as file:
        first, *rest = list(csv.reader(file))[1:]
    return first[1], [Check(*row[:3], *map(float, row[3:])) for row in rest]  # type: ignore[arg-type]


if __name__ == "__main__":
    main(Path(sys.argv[1]))
