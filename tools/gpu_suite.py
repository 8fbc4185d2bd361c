"""Benchmark ACmix layers and networks against plain ones on a GPU, within a time budget (`make bench-gpu`).

    python -m tools.gpu_suite                                     # on the GPU, into benchmarks/gpu.csv
    python -m tools.gpu_suite tiles --seconds 60                  # one part of it
    python -m tools.gpu_suite --device cpu --seconds 5 --csv FILE # rehearse the code without a GPU

Every group of candidates is measured in float32 (TF32 off), tf32 (float32 with TF32 in matrix products and
convolutions) or bfloat16 (autocast, float32 weights), for inference or training (forward and backward), eager or
compiled. cuDNN chooses its kernels by its heuristics, as in training (`cudnn.benchmark` is off). Each row is written
as soon as it is measured. Groups that do not fit into the budget are listed at the end. Run the same command again to
measure them; existing rows are kept.
"""

from __future__ import annotations

import platform
import subprocess
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from math import log2
from pathlib import Path

import torch
from rich.console import Console

from acmix_zoo.bench.candidates import Candidate, is_network
from acmix_zoo.bench.measure import measure
from acmix_zoo.bench.results import Row, format_table, read_rows, write_csv
from acmix_zoo.ops.peak import matmul_peak
from tools import make_parser
from tools.gpu_groups import PARTS, Group, Kind

# Expected seconds per group, until a group of the same kind has been measured.
_EXPECTED = {
    Kind("layer", is_compiled=False): 3.0,
    Kind("network", is_compiled=False): 15.0,
    Kind("layer", is_compiled=True): 60.0,
    Kind("network", is_compiled=True): 150.0,
}


@dataclass(frozen=True)
class GpuRow:
    """A measurement with its hardware and software. Both ratios are relative to the baseline, per image."""

    card: str
    driver: str
    torch: str
    cuda: str
    candidate: str
    baseline: str
    precision: str
    mode: str
    batch: int
    input: str
    ms: float
    ms_q1: float
    ms_q3: float
    images_per_s: float
    peak_mib: float
    macs: int
    gflops: float
    peak_fraction: float
    ratio: float
    memory_ratio: float

    @property
    def key(self) -> tuple[str, ...]:
        """The values that identify the row."""
        return self.card, self.torch, self.candidate, self.baseline, self.precision, self.mode


class Budget:
    """Decides whether a group still fits into the time, based on how long groups of the same kind have taken."""

    def __init__(self, seconds: float) -> None:
        self._until = time.monotonic() + seconds
        self._seen: dict[Kind, float] = {}

    def allows(self, group: Group) -> bool:
        expected = self._seen.get(group.kind, _EXPECTED[group.kind])
        return time.monotonic() + expected <= self._until

    @contextmanager
    def spend(self, group: Group) -> Iterator[None]:
        start = time.monotonic()
        try:
            yield
        finally:
            self._seen[group.kind] = max(self._seen.get(group.kind, 0.0), time.monotonic() - start)


@contextmanager
def tf32(on: bool) -> Iterator[None]:
    """Allow TF32 in matrix products and in convolutions, or in neither; PyTorch's defaults differ between the two."""
    before = torch.get_float32_matmul_precision(), torch.backends.cudnn.allow_tf32
    torch.set_float32_matmul_precision("high" if on else "highest")
    torch.backends.cudnn.allow_tf32 = on
    try:
        yield
    finally:
        torch.set_float32_matmul_precision(before[0])
        torch.backends.cudnn.allow_tf32 = before[1]


class Bench:
    """Measure groups on one device.

    Args:
        device: "cuda", or "cpu" for a rehearsal with two small images and one round.
    """

    def __init__(self, device: str) -> None:
        self.device = device
        self._matmul_gflops: dict[str, float] = {}
        self.batch, self.size, self.rounds = (2, 32, 1) if device == "cpu" else (_batch(), 0, 5)
        self.card, self.driver = (platform.processor() or "CPU", "") if device == "cpu" else _card()

    def run(self, group: Group) -> tuple[list[Row], list[GpuRow]]:
        """Measure a group's candidates, and return plain rows and the same rows with hardware and software."""
        dtype = "bfloat16" if group.precision == "bfloat16" else "float32"
        with tf32(group.precision == "tf32"):
            candidates = [
                Candidate(
                    name,
                    batch=self.batch,
                    size=self.size if is_network(name) else 0,
                    train=group.train,
                    threads=torch.get_num_threads(),
                    dtype=dtype,
                    device=self.device,
                    autocast=dtype != "float32",
                )
                for name in group.candidates
            ]
            if group.kind.is_compiled:
                torch.compiler.reset()  # otherwise dynamo's recompile limit makes later ones run in eager mode
            rows = measure(candidates, self.rounds, self.device != "cpu", self._measure_matmul(group.precision, dtype))
        return rows, [self._gpu_row(row, rows[0], group) for row in rows]

    def _measure_matmul(self, precision: str, dtype: str) -> float:
        """Return the GFLOP/s of a matrix product in this precision."""
        if precision not in self._matmul_gflops:
            sizes = [(512, 2)] if self.device == "cpu" else [(4096, 10), (8192, 5)]
            self._matmul_gflops[precision] = matmul_peak(torch.get_num_threads(), dtype, self.device, sizes)
        return self._matmul_gflops[precision]

    def _gpu_row(self, row: Row, first: Row, group: Group) -> GpuRow:
        shared = {name: value for name, value in asdict(row).items() if name not in ("threads", "dtype")}
        return GpuRow(
            card=self.card,
            driver=self.driver,
            torch=torch.__version__,
            cuda=torch.version.cuda or "",
            baseline=first.candidate,
            precision=group.precision,
            ratio=round(row.ms / first.ms, 3),
            memory_ratio=round(row.peak_mib / first.peak_mib, 3) if first.peak_mib else float("nan"),
            **shared,
        )


def missing_gpu() -> str | None:
    """Return one line that says why no CUDA GPU can be used, or None if one can."""
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return f"No GPU: torch {torch.__version__} was built without CUDA. Install a CUDA build of torch (pytorch.org)."
    return (
        f"No GPU: torch {torch.__version__} was built for CUDA {torch.version.cuda}, but finds no usable device. "
        "Run nvidia-smi to check the card and the driver."
    )


def _card() -> tuple[str, str]:
    """Return the name of the card and the version of its driver."""
    command = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader", "--id=0"]
    try:
        driver = subprocess.run(command, capture_output=True, encoding="utf-8", check=True).stdout.strip()
    except (OSError, subprocess.CalledProcessError):
        driver = "unknown"
    return torch.cuda.get_device_name(), driver


def _batch() -> int:
    """Return a batch size of two images per GiB of GPU memory, as a power of two; `measure` halves it if needed."""
    total: int = torch.cuda.get_device_properties(0).total_memory
    return int(2 ** int(log2(max(2 * total / 2**30, 1))))


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return its exit code: 1 if there is no GPU, or if a group failed."""
    parser = make_parser("gpu_suite", __doc__)
    add = parser.add_argument
    add("parts", nargs="*", metavar="part", help=f"{', '.join(PARTS)} (default: all, in this order)")
    add("--device", choices=("cuda", "cpu"), default="cuda")
    add("--seconds", type=float, default=540, help="time budget (default: 540)")
    add("--csv", type=Path, help="where to write the rows (default: benchmarks/gpu.csv)")
    add("--check", action="store_true", help="only check that there is a GPU")
    options = parser.parse_args(arguments)
    if unknown := set(options.parts) - set(PARTS):
        parser.error(f"unknown part {', '.join(sorted(unknown))}. Expected one of {', '.join(PARTS)}")
    if options.device == "cuda" and (message := missing_gpu()):
        print(message)
        return 1
    if options.check:
        return 0
    if options.csv is None and options.device == "cpu":
        parser.error("--device cpu needs --csv FILE, since benchmarks/gpu.csv holds measurements of GPUs only")
    groups = [group for part in options.parts or PARTS for group in PARTS[part]()]
    return _measure_all(
        groups, Bench(options.device), Budget(options.seconds), options.csv or Path("benchmarks/gpu.csv")
    )


def _measure_all(groups: Sequence[Group], bench: Bench, budget: Budget, path: Path) -> int:
    """Measure the groups that the file does not have yet, as far as the budget allows, and return the exit code."""
    rows = read_rows(path, GpuRow) if path.exists() else []
    measured = {row.key for row in rows}
    left_out, failed = [], []
    for group in groups:
        keys = [
            (bench.card, torch.__version__, name, group.candidates[0], group.precision, group.mode)
            for name in group.candidates
        ]
        if measured.issuperset(keys):
            continue
        if not budget.allows(group):
            left_out.append(group)
            continue
        try:
            with budget.spend(group):
                found, new = bench.run(group)
        except Exception as error:  # continue with the other groups
            failed.append(f"{group}: {type(error).__name__}: {str(error).partition(chr(10))[0]}")
            continue
        print(f"{group.precision}:")
        Console().print(format_table(found))
        rows = [row for row in rows if row.key not in keys] + new
        write_csv(rows, path)
    for title, listed in (("Not measured for lack of time", left_out), ("Failed", failed)):
        if listed:
            print(f"{title}:", *listed, sep="\n  ")
    print(f"{path} has {len(rows)} rows." + " Run the same command again to measure the rest." * bool(left_out))
    return int(bool(failed))


if __name__ == "__main__":
    raise SystemExit(main())
