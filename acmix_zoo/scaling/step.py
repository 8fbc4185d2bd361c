"""Memory, time and communication of a training step on n GPUs, by the formulas of docs/scaling.md.

This file is pure arithmetic. The cost of the network is given as a `Training` (`acmix_zoo.scaling.jobs` counts it for a
recipe), and the hardware as a `Machine`. Units are bytes, seconds and images.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, inf
from typing import NamedTuple

from acmix_zoo.scaling.activations import Activations
from acmix_zoo.scaling.machines import Machine

UTILISATION = {4: 0.30, 2: 0.10}
"""Assumed fraction of peak throughput that training reaches, by bytes per number. It is half of what NVIDIA published
for the plain ResNet-50 (57 % of a V100 in float32, 24 % of a V100 and 20 % of an A100 in mixed precision)."""

BUCKET = 25 * 2**20
"""Bytes of gradients that DistributedDataParallel reduces at a time, while the backward pass continues."""


@dataclass(frozen=True)
class Training:
    """A training step on one device.

    Attributes:
        params: number of parameters.
        trainable: number of parameters that are trained, in float32.
        macs: multiply-accumulates of the forward pass per image.
        activations: bytes kept for the backward pass.
        batch: images per device and pass.
        micro_batches: forward and backward passes per step, whose gradients are accumulated.
        dtype: dtype of the arithmetic.
        states: numbers that the optimiser keeps per parameter.
        ema: whether there is a second, averaged set of weights.
        forward_equivalents: cost of a micro-batch in forward passes: 3 with the backward pass, 4 with gradient
            checkpointing (which repeats the forward pass), and 1 for a linear probe.
        strategy: "ddp" or "fsdp".
    """

    params: int
    trainable: int
    macs: int
    activations: Activations
    batch: int
    micro_batches: int = 1
    dtype: str = "float32"
    states: int = 2
    ema: bool = False
    forward_equivalents: int = 3
    strategy: str = "ddp"

    @property
    def itemsize(self) -> int:
        """Bytes per number in the arithmetic."""
        return 4 if self.dtype == "float32" else 2


@dataclass(frozen=True)
class Memory:
    """Memory of one GPU in bytes. `buffers` are copies that are made for communication."""

    weights: float
    gradients: float
    optimiser: float
    ema: float
    buffers: float
    activations: float

    @property
    def total(self) -> float:
        return self.weights + self.gradients + self.optimiser + self.ema + self.buffers + self.activations


class Communication(NamedTuple):
    """What communication costs a GPU in one step.

    Attributes:
        sent: bytes that the GPU sends.
        waiting: seconds during which it waits instead of computing.
    """

    sent: float
    waiting: float


class Transfer(NamedTuple):
    """An all-reduce: the bytes that one GPU sends, and the seconds that it takes."""

    sent: float
    seconds: float


class BucketedTransfer(NamedTuple):
    """An all-reduce in buckets: the bytes that one GPU sends, all seconds, and the seconds of the last bucket."""

    sent: float
    seconds: float
    last: float

    def half(self) -> BucketedTransfer:
        """Return the cost of an all-gather or reduce-scatter, which is half of an all-reduce."""
        return BucketedTransfer(self.sent / 2, self.seconds / 2, self.last / 2)


@dataclass(frozen=True)
class Step:
    """One optimiser step on several GPUs.

    Attributes:
        gpus: number of GPUs.
        images: images of all GPUs.
        memory: bytes of one GPU.
        sent: bytes that one GPU sends.
        compute: seconds of arithmetic.
        waiting: seconds during which a GPU waits for communication.
    """

    gpus: int
    images: int
    memory: Memory
    sent: float
    compute: float
    waiting: float

    @property
    def seconds(self) -> float:
        return self.compute + self.waiting

    @property
    def throughput(self) -> float:
        """Images per second."""
        return self.images / self.seconds

    @property
    def efficiency(self) -> float:
        """Fraction of the time in which the GPUs compute."""
        return self.compute / self.seconds


def plan_step(
    training: Training,
    machine: Machine,
    gpus: int,
    gpus_per_node: int = 8,
    utilisation: float | None = None,
    throughput: float | None = None,
) -> Step:
    """Return what a step costs on `gpus` GPUs.

    Args:
        training: the step on one device.
        machine: the hardware.
        gpus: number of GPUs.
        gpus_per_node: number of GPUs in each node.
        utilisation: see `compute_seconds`.
        throughput: see `compute_seconds`.

    Raises:
        ValueError: impossible numbers, see `all_reduce` and `compute_seconds`.
    """
    compute = compute_seconds(training, machine, utilisation, throughput)
    sent, waiting = plan_communication(training, machine, gpus, gpus_per_node, compute)
    images = training.batch * training.micro_batches * gpus
    return Step(gpus, images, plan_memory(training, gpus), sent, compute, waiting)


def plan_memory(training: Training, gpus: int) -> Memory:
    """Return the peak memory of a GPU: at the end of the forward pass, with the gradients allocated.

    With DDP every GPU holds everything, and the gradients once more in DDP's buckets. With FSDP a GPU holds its part of
    weights, gradients and states, and gathers the weights to use them. This assumes the worst case, in which all of
    them are gathered at the same time.
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
        activations=t.activations.total(t.batch),
    )


def compute_seconds(
    training: Training, machine: Machine, utilisation: float | None = None, throughput: float | None = None
) -> float:
    """Return the seconds of arithmetic in a step: forward equivalents · 2 · MACs · images / (peak · utilisation).

    Args:
        training: the step on one device.
        machine: the hardware.
        utilisation: fraction of peak throughput. By default this is the assumption in `UTILISATION`.
        throughput: images per second that one GPU was measured to train. It replaces the formula.

    Raises:
        ValueError: the GPU does not support the dtype, or impossible numbers.
    """
    t = training
    if t.dtype not in machine.peak:
        raise ValueError(
            f"plan: {machine.name} does not compute in {t.dtype}. Expected {' or '.join(machine.peak)}. Choose a "
            "different --gpu or --precision"
        )
    if throughput is not None:
        if not 0 < throughput < inf:
            raise ValueError(f"plan: a throughput of {throughput:g} images/s is impossible. Use a finite rate above 0")
        return t.batch * t.micro_batches / throughput
    fraction = UTILISATION[t.itemsize] if utilisation is None else utilisation
    if not 0 < fraction <= 1:
        raise ValueError(
            f"plan: a utilisation of {fraction:g} is impossible. Use a fraction of peak throughput between 0 and 1"
        )
    return t.forward_equivalents * 2 * t.macs * t.batch * t.micro_batches / (machine.peak[t.dtype] * fraction)


def plan_communication(t: Training, machine: Machine, gpus: int, gpus_per_node: int, compute: float) -> Communication:
    """Return the communication in a step whose arithmetic takes `compute` seconds.

    Gradients are sent bucket by bucket while the last backward pass of the step computes the next ones. A GPU therefore
    waits for the last bucket, or for everything that did not fit into the backward pass. FSDP also gathers the weights
    before both passes and scatters the summed gradients. Each of these takes half of an all-reduce.
    """
    backward = compute / t.micro_batches * (t.forward_equivalents - 1) / t.forward_equivalents
    if t.strategy == "ddp":
        gradients = _reduce_in_buckets(4 * t.trainable, gpus, machine, gpus_per_node)
        return Communication(gradients.sent, max(gradients.last, gradients.seconds - backward))
    gather = _reduce_in_buckets(t.itemsize * t.params, gpus, machine, gpus_per_node).half()
    scatter = _reduce_in_buckets(t.itemsize * t.trainable, gpus, machine, gpus_per_node).half()
    forward = compute / t.micro_batches / t.forward_equivalents
    waiting = t.micro_batches * max(gather.last, gather.seconds - forward)
    waiting += (t.micro_batches - 1) * max(gather.last, gather.seconds - backward)
    waiting += max(scatter.last, gather.seconds + scatter.seconds - backward)
    return Communication(t.micro_batches * 2 * gather.sent + scatter.sent, waiting)


def all_reduce(size: float, gpus: int, machine: Machine, gpus_per_node: int = 8) -> Transfer:
    """Return the cost of summing `size` bytes over `gpus` GPUs.

    This assumes two rings. Each node does a reduce-scatter, the nodes all-reduce their shards, and each node finishes
    with an all-gather. One large ring would send the same number of bytes, 2·(n − 1)/n·size.

    Raises:
        ValueError: no GPU, or nodes that are not full.
    """
    if min(gpus, gpus_per_node) < 1:
        raise ValueError(f"plan: {gpus} GPUs in nodes of {gpus_per_node} are impossible. Use at least 1 of each")
    if gpus > gpus_per_node and gpus % gpus_per_node:
        raise ValueError(
            f"plan: {gpus} GPUs do not fill nodes of {gpus_per_node}. Use at most {gpus_per_node}, or a multiple of it"
        )
    inside, nodes = min(gpus, gpus_per_node), ceil(gpus / gpus_per_node)
    sent_inside = 2 * (inside - 1) / inside * size
    sent_outside = 2 * (nodes - 1) / nodes * size / inside
    seconds = machine.within_node.seconds(sent_inside, 2 * (inside - 1))
    seconds += machine.between_nodes.seconds(sent_outside, 2 * (nodes - 1))
    return Transfer(sent_inside + sent_outside, seconds)


def _reduce_in_buckets(size: float, gpus: int, machine: Machine, gpus_per_node: int) -> BucketedTransfer:
    """Return the cost of an all-reduce of `size` bytes, one bucket at a time."""
    sent = all_reduce(size, gpus, machine, gpus_per_node).sent
    last = all_reduce(min(size, BUCKET), gpus, machine, gpus_per_node).seconds
    seconds = int(size // BUCKET) * all_reduce(BUCKET, gpus, machine, gpus_per_node).seconds
    if size % BUCKET:
        seconds += all_reduce(size % BUCKET, gpus, machine, gpus_per_node).seconds
    return BucketedTransfer(sent, seconds, last)
