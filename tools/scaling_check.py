"""Compare the formulas of `acmix_zoo.scaling.step` with two processes on this machine; write benchmarks/scaling.csv.

    OMP_NUM_THREADS=1 python -m tools.scaling_check benchmarks/scaling.csv

This runs two processes with one thread each and gloo over loopback, for a few minutes on two quiet cores. What is
compared takes turns, round after round, and the reported values are medians. All-reduces give the rate and latency of
the link, networks that train alone give the time of the arithmetic, and both together predict how long the networks
take with DistributedDataParallel.
"""

from __future__ import annotations

import csv
import os
import statistics
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

from acmix_zoo.bench.candidates import Candidate, build, memory_format
from acmix_zoo.bench.memory import cpu_peak
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.ops.peak import matmul_peak
from acmix_zoo.scaling.activations import Activations, count_saved_bytes
from acmix_zoo.scaling.machines import Link, Machine
from acmix_zoo.scaling.step import Training, all_reduce, compute_seconds, plan_step
from tools import make_parser
from tools.suite import describe_machine

NETWORKS = ("acmix_resnet26", "acmix_swin_t", "acmix_san10", "acmix_pvt_t")
SIZE, BATCH = 64, 4  # short steps, so that communication matters
KIB = (4, 64, 1024, 4096, 16384, 65536)
MODES = ("alone", "alone, twice the batch", "two processes, no communication", "two processes, DDP")


@dataclass(frozen=True)
class Check:
    """A measurement, and what the plan predicts for it from the other measurements.

    Attributes:
        check: kind of the check, see docs/scaling.md.
        what: the network or the size.
        unit: unit of all numbers.
        measured, q1, q3: median and quartiles.
        predicted: by the plan.
    """

    check: str
    what: str
    unit: str
    measured: float
    q1: float
    q3: float
    predicted: float

    @property
    def deviation(self) -> float:
        """How far the prediction is off, as a fraction of the measurement."""
        return self.predicted / self.measured - 1


def make_check(name: str, what: str, unit: str, values: Sequence[float], predicted: float) -> Check:
    """Return a check with the median and quartiles of the values, to four digits."""
    q1, median, q3 = statistics.quantiles(values, n=4) if len(values) > 1 else [values[0]] * 3
    return Check(name, what, unit, *(float(f"{x:.4g}") for x in (median, q1, q3, predicted)))


# ---- In the two processes.


def time_together(run: Callable[[], Any]) -> float:
    """Return the milliseconds of a call that both processes start at the same moment."""
    dist.barrier()
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1e3


def time_reductions(rounds: int) -> dict[int, list[float]]:
    """Return the milliseconds of all-reduces, by bytes."""
    tensors = [torch.ones(kib * 256) for kib in KIB]
    times: dict[int, list[float]] = {t.nbytes: [] for t in tensors}
    for i in range(rounds + 2):
        for t in tensors:
            ms = time_together(lambda t=t: dist.all_reduce(t.fill_(1)))  # type: ignore[misc]
            if i >= 2:
                times[t.nbytes].append(ms)
    return times


def time_network(name: str, rounds: int) -> dict[str, list[float]]:
    """Return the milliseconds of a training step in each of `MODES`."""
    candidate = Candidate(name, BATCH, SIZE, train=True, threads=1)
    module, shape = build(candidate)
    ddp = DistributedDataParallel(module)
    optimizer = torch.optim.SGD(ddp.parameters(), lr=1e-3, momentum=0.9)
    x = torch.randn(2 * BATCH, *shape).contiguous(memory_format=memory_format(candidate))
    y = torch.zeros(2 * BATCH, dtype=torch.long)

    def train(images: int, communicate: bool) -> None:
        optimizer.zero_grad()
        # Do not use no_sync() instead of the bare module: its first forward pass still waits for all processes.
        network = ddp if communicate else module
        F.cross_entropy(network(x[:images]), y[:images]).backward()
        optimizer.step()

    is_first = dist.get_rank() == 0
    runs: list[Callable[[], None]] = [
        lambda: train(BATCH, False) if is_first else None,
        lambda: train(2 * BATCH, False) if is_first else None,
        lambda: train(BATCH, False),
        lambda: train(BATCH, True),
    ]
    times: dict[str, list[float]] = {mode: [] for mode in MODES}
    for i in range(rounds + 2):
        for mode, run in zip(MODES, runs, strict=True):
            ms = time_together(run)
            if i >= 2:
                times[mode].append(ms)
    return times


def run_worker(rank: int, folder: str, networks: Sequence[str], rounds: int) -> None:
    """Measure in one of the two processes; the first one saves the times."""
    os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/rendezvous", rank=rank, world_size=2)
    times = {"reductions": time_reductions(3 * rounds)}, {name: time_network(name, rounds) for name in networks}
    if rank == 0:
        torch.save(times, f"{folder}/times.pt")
    dist.destroy_process_group()


# ---- Comparison with the plan.


def fit_link(times: dict[int, list[float]]) -> Link:
    """Return the link that fits the times of all-reduces best, by least squares of the relative deviation.

    With two processes, an all-reduce is two messages of half of the bytes in each direction.
    """
    sizes = np.array(list(times), dtype=float)
    seconds = np.array([statistics.median(ms) for ms in times.values()]) / 1e3
    (per_byte, latency), *_ = np.linalg.lstsq(
        np.stack([sizes / seconds, 2 / seconds], 1), np.ones(len(sizes)), rcond=None
    )
    return Link(1 / per_byte, max(latency, 0.0))


def check_networks(times: dict[str, dict[str, list[float]]], link: Link, peak: float) -> list[Check]:
    """Return the checks of every network: doubled batch, arithmetic, two processes, and DDP."""
    machine = Machine("this CPU", 0, {"float32": peak}, link, link)
    trainings = {name: training_of_network(name) for name in times}
    alone = {name: statistics.median(modes["alone"]) / 1e3 for name, modes in times.items()}
    fractions = {name: compute_seconds(t, machine, utilisation=1) / alone[name] for name, t in trainings.items()}
    mean = statistics.fmean(fractions.values())
    checks = []
    for name, modes in times.items():
        t, both = trainings[name], statistics.median(modes[MODES[2]]) / 1e3
        planned = plan_step(t, machine, 2, gpus_per_node=2, throughput=BATCH / both)
        sending = all_reduce(4 * t.trainable, 2, machine).seconds
        checks += [
            make_check("doubled batch", name, "ms", modes[MODES[1]], 2e3 * alone[name]),
            make_check("one utilisation", f"{name}: {100 * fractions[name]:.0f} % of the peak", "ms", modes[MODES[0]],
                       1e3 * compute_seconds(t, machine, utilisation=mean)),
            make_check("two processes", name, "ms", modes[MODES[2]], 1e3 * alone[name]),
            make_check("DDP", name, "ms", modes[MODES[3]], 1e3 * planned.seconds),
            make_check("DDP without overlap", name, "ms", modes[MODES[3]], 1e3 * (both + sending)),
        ]  # fmt: skip
    return sorted(checks, key=lambda check: [c.check for c in checks].index(check.check))


def training_of_network(name: str) -> Training:
    """Return the network's step as the plan sees it, without activations, which `check_memory` counts."""
    module, shape = build(Candidate(name, BATCH, SIZE, train=True, threads=1))
    cost = complexity(module, shape)
    return Training(cost.params, cost.params, cost.macs, Activations(0, 0), BATCH, states=1)


def check_memory(names: Sequence[str], size: int = 224, batch: int = 4) -> list[Check]:
    """Return the peak memory of a forward and backward pass beside the counted activations and gradients."""
    checks = []
    for name in names:
        candidate = Candidate(name, batch, size, train=True, threads=1)
        module, shape = build(candidate)
        x = torch.zeros(batch, *shape).contiguous(memory_format=memory_format(candidate))
        kept, gradients = count_saved_bytes(module, x), sum(p.nbytes for p in module.parameters())
        checks.append(make_check("memory", name, "MiB", [cpu_peak(candidate)], (kept + gradients) / 2**20))
    return checks


def run_checks(path: Path, networks: Sequence[str] = NETWORKS, rounds: int = 7) -> list[Check]:
    """Measure, compare, write the file and print the checks."""
    start = time.perf_counter()
    about = describe_machine()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        spawn(run_worker, (folder, tuple(networks), rounds), nprocs=2)
        reductions, times = torch.load(f"{folder}/times.pt", weights_only=True)
    peak = 1e9 * matmul_peak(1)
    link = fit_link(reductions["reductions"])
    machine = Machine("this CPU", 0, {}, link, link)
    checks = [
        make_check("all-reduce", f"{size / 1024:,.0f} KiB", "ms", ms, 1e3 * all_reduce(size, 2, machine).seconds)
        for size, ms in reductions["reductions"].items()
    ]
    checks += check_networks(times, link, peak) + check_memory(networks)
    description = (
        f"{about['cpu']}; {peak / 1e9:.1f} GFLOP/s per thread in a matrix product; gloo over loopback, fitted as "
        f"{link.rate / 1e9:.2f} GB/s and {1e6 * link.latency:.0f} µs per message; torch {about['torch']}, "
        f"{about['date']}, in {time.perf_counter() - start:.0f} s, load {os.getloadavg()[1]:.1f}"
    )
    with path.open("w", encoding="utf-8", newline="") as file:
        out = csv.writer(file)
        out.writerow([field.name for field in fields(Check)])
        out.writerow(["machine", description, *[""] * 5])
        out.writerows([*vars(check).values()] for check in checks)
    print(description)
    for c in checks:
        print(f"{c.check:22} {c.what:36} {c.measured:9.4g} {c.unit:4} {c.predicted:9.4g} {c.deviation:+.0%}")
    return checks


def read_checks(path: Path) -> tuple[str, list[Check]]:
    """Return the description of the machine, and the checks, from a file that `run_checks` wrote."""
    with path.open(encoding="utf-8", newline="") as file:
        first, *rest = list(csv.reader(file))[1:]
    return first[1], [Check(*row[:3], *map(float, row[3:])) for row in rest]  # type: ignore[arg-type]


if __name__ == "__main__":
    parser = make_parser("scaling_check", __doc__)
    parser.add_argument("file", type=Path, help="where to write the checks")
    run_checks(parser.parse_args().file)
