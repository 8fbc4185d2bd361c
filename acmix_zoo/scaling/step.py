"""Memory, time and communication of a training step on n GPUs, by the formulas of docs/scaling.md.

Pure arithmetic: what the network costs comes in as a `Training` (`acmix_zoo.scaling.jobs` counts it for a recipe),
what the hardware gives as a `Machine`. Bytes, seconds, images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

from acmix_zoo.scaling.activations import Activations
from acmix_zoo.scaling.machines import Machine

UTILISATION = {4: 0.30, 2: 0.10}
"""Assumed share of the peak that training reaches, by bytes of a number: half of what NVIDIA published for the plain
ResNet-50 (57 % of a V100 in float32, 24 % of it and 20 % of an A100 in mixed precision)."""

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel reduces at a time, while the backward pass goes on."""


@dataclass(frozen=True)
class Training:
    """A step on one device.

    params, trainable: parameters, and those of them that learn (float32).
    macs: of one image's forward pass. activations: kept for the backward pass.
    batch, accumulate: images a device and pass, and passes a step.
    dtype: of the arithmetic. states: numbers that the optimiser keeps for a parameter. ema: a second set of weights?
    passes: forward passes that a pass costs: 3 with its backward, 4 where the forward is computed again, 1 without.
    strategy: "ddp" or "fsdp".
    """

    params: int
    trainable: int
    macs: int
    activations: Activations
    batch: int
    accumulate: int = 1
    dtype: str = "float32"
    states: int = 2
    ema: bool = False
    passes: int = 3
    strategy: str = "ddp"

    @property
    def itemsize(self) -> int:
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Memory:
    """Bytes of one GPU. `buffers`: copies made for communication."""

    weights: float
    gradients: float
    optimiser: float
    ema: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.ema + self.buffers + self.activations


@dataclass(frozen=True)
class Step:
    """One optimiser step on `gpus` GPUs: bytes a GPU (`memory`, `volume` sent), seconds, images of all GPUs."""

    gpus: int
    images: int
    memory: Memory
    volume: float
    compute: float
    exposed: float

    @property
    def seconds(self) -> float:
        return self.compute + self.exposed

    @property
    def rate(self) -> float:
        """Images a second."""
        return self.images / self.seconds

    @property
    def efficiency(self) -> float:
        """The share of n GPUs' arithmetic that n GPUs do."""
        return self.compute / self.seconds


def all_reduce(size: float, gpus: int, machine: Machine, node: int = 8) -> tuple[float, float]:
    """(bytes that a GPU sends, seconds) of summing `size` bytes over `gpus` GPUs, `node` of them in a node.

    Two rings: within a node the sum is scattered, each GPU sums its part with those of the other nodes, and the parts
    are gathered. The bytes are those of one large ring, 2·(n − 1)/n·size.

    Raises:
        ValueError: no GPU; the nodes are not full.
    """
    if min(gpus, node) < 1:
        raise ValueError(f"plan: {gpus} GPUs in nodes of {node} were given; expected at least 1 of each")
    if gpus > node and gpus % node:
        raise ValueError(f"plan: {gpus} GPUs were given in nodes of {node}; expected up to {node}, or a multiple of it")
    inside, nodes = min(gpus, node), ceil(gpus / node)
    within = 2 * (inside - 1) / inside * size
    between = 2 * (nodes - 1) / nodes * size / inside
    seconds = machine.inner.seconds(within, 2 * (inside - 1)) + machine.outer.seconds(between, 2 * (nodes - 1))
    return within + between, seconds


def memory(training: Training, gpus: int) -> Memory:
    """What a GPU holds when it holds most: at the end of the forward pass, with the gradients allocated.

    DDP keeps all of it on every GPU, and the gradients a second time, in its buckets. FSDP keeps an n-th of weights,
    gradients and states, and gathers the weights for use: at worst, counted here, all of them at a time.
    """
    t = training
    shards = gpus if t.strategy == "fsdp" else 1
    buffers = 0.0
    if gpus > 1:
        buffers = t.params * t.itemsize if t.strategy == "fsdp" else 4 * t.trainable
    return Memory(
        weights=4 * t.params / shards,
        gradients=4 * t.trainable / shards,
        optimiser=4 * t.states * t.trainable / shards,
        ema=4 * t.params * t.ema / shards,
        buffers=buffers,
        activations=t.activations.of(t.batch),
    )


def compute(training: Training, machine: Machine, utilisation: float | None = None, rate: float | None = None) -> float:
    """Seconds of arithmetic of a step: passes · 2 · MACs · images / (peak · utilisation), or images / rate.

    Args:
        utilisation: share of the machine's peak; by default the assumption of `UTILISATION`.
        rate: images a second that one GPU was measured to train at, in place of the formula.

    Raises:
        ValueError: the GPU has no such arithmetic; impossible numbers.
    """
    t = training
    if t.dtype not in machine.peak:
        raise ValueError(
            f"plan: {machine.name} does not compute in {t.dtype}, but in {', '.join(machine.peak)}; "
            "choose another --gpu or --precision"
        )
    if rate is not None:
        if rate <= 0:
            raise ValueError(f"plan: {rate:g} images a second were given; expected more than 0")
        return t.batch * t.accumulate / rate
    share = UTILISATION[t.itemsize] if utilisation is None else utilisation
    if not 0 < share <= 1:
        raise ValueError(f"plan: a utilisation of {share:g} was given; expected a share of the peak, in (0, 1]")
    return t.passes * 2 * t.macs * t.batch * t.accumulate / (machine.peak[t.dtype] * share)


def step(
    training: Training,
    machine: Machine,
    gpus: int,
    node: int = 8,
    utilisation: float | None = None,
    rate: float | None = None,
) -> Step:
    """What a step of `training` takes on `gpus` GPUs.

    Raises:
        ValueError: impossible numbers, see `all_reduce` and `compute`.
    """
    t = training
    work = compute(t, machine, utilisation, rate)
    volume, exposed = communication(t, machine, gpus, node, work)
    return Step(gpus, t.batch * t.accumulate * gpus, memory(t, gpus), volume, work, exposed)


def communication(t: Training, machine: Machine, gpus: int, node: int, work: float) -> tuple[float, float]:
    """(bytes that a GPU sends, seconds that it waits) in a step whose arithmetic takes `work` seconds.

    Gradients go bucket by bucket while the last backward pass of the step computes the next, so it waits for the last
    bucket, or for all that the backward pass was too short for. FSDP gathers the weights in front of both passes, an
    all-reduce's half each, and scatters the sums of the gradients, another half.
    """
    backward = work / t.accumulate * (t.passes - 1) / t.passes
    if t.strategy == "ddp":
        volume, seconds, last = _in_buckets(4 * t.trainable, gpus, machine, node)
        return volume, max(last, seconds - backward)
    weights, gather, first = (x / 2 for x in _in_buckets(t.itemsize * t.params, gpus, machine, node))
    sums, scatter, last = (x / 2 for x in _in_buckets(t.itemsize * t.trainable, gpus, machine, node))
    forward = work / t.accumulate / t.passes
    waits = t.accumulate * max(first, gather - forward) + (t.accumulate - 1) * max(first, gather - backward)
    return t.accumulate * 2 * weights + sums, waits + max(last, gather + scatter - backward)


def _in_buckets(size: float, gpus: int, machine: Machine, node: int) -> tuple[float, float, float]:
    """(bytes, seconds, seconds of the last bucket) of an all-reduce of `size` bytes, a bucket at a time."""
    bucket = min(size, BUCKET)
    volume, _ = all_reduce(size, gpus, machine, node)
    _, one = all_reduce(bucket, gpus, machine, node)
    full = int(size // BUCKET)
    rest = all_reduce(size % BUCKET, gpus, machine, node)[1] if size % BUCKET else 0.0
    return volume, full * all_reduce(BUCKET, gpus, machine, node)[1] + rest, one
