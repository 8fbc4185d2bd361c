"""The hardware that `acmix_zoo.scaling.step` computes for: GPUs and the links between them, as their makers specify.

Peaks are for dense arithmetic, without sparsity. The rate of a link is that of one direction: what a GPU can send while
it receives as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf

LINK_FRACTION = 0.8
"""Assumed fraction of a link's specified rate that a long transfer reaches."""


@dataclass(frozen=True)
class Link:
    """The connection from one GPU to the next.

    Attributes:
        rate: bytes per second in one direction.
        latency: seconds per message.
    """

    rate: float
    latency: float

    def seconds(self, size: float, messages: int) -> float:
        """Return the seconds for `size` bytes, sent in messages that follow each other."""
        return size / self.rate + messages * self.latency


@dataclass(frozen=True)
class Machine:
    """A kind of GPU and its surroundings.

    Attributes:
        name: the name to print.
        memory: bytes.
        peak: FLOP/s for each dtype.
        within_node: the link to the other GPUs of the node.
        between_nodes: the link to other nodes.
    """

    name: str
    memory: float
    peak: dict[str, float]
    within_node: Link
    between_nodes: Link

    def with_network(self, gbit: float, gpus_per_node: int) -> Machine:
        """Return this machine in nodes whose network has `gbit` Gbit/s, shared by all GPUs of the node.

        Raises:
            ValueError: the rate is not positive and finite, or there is no GPU in a node.
        """
        if gpus_per_node < 1:
            raise ValueError(f"plan: nodes of {gpus_per_node} GPUs are impossible. Use at least 1")
        if not 0 < gbit < inf:
            raise ValueError(f"plan: a network of {gbit:g} Gbit/s per node is impossible. Use a rate above 0")
        rate = LINK_FRACTION * gbit / 8 * 1e9 / gpus_per_node
        return replace(self, between_nodes=Link(rate, self.between_nodes.latency))


def _gpu(name: str, memory: int, peak: dict[str, float], within_node: float, between_nodes: float) -> Machine:
    """Return a machine from GB, TFLOP/s and GB/s.

    Latencies are assumed: 3 µs per message by NVLink, 10 µs by the network.
    """
    flops = {dtype: 1e12 * value for dtype, value in peak.items()}
    return Machine(
        name,
        memory * 1e9,
        flops,
        Link(LINK_FRACTION * within_node * 1e9, 3e-6),
        Link(LINK_FRACTION * between_nodes * 1e9, 10e-6),
    )


# The peaks of float32 are without tensor cores, since torch multiplies matrices in TF32 only if it is enabled.
GPUS = {
    # NVIDIA V100 data sheet (SXM2, 32 GB): NVLink 300 GB/s in both directions. DGX-1: 4 × 100 Gbit/s for 8 GPUs.
    "v100": _gpu("V100 SXM2 32 GB", 32, {"float32": 15.7, "float16": 125}, 150, 6.25),
    # NVIDIA A100 data sheet (SXM, 80 GB): NVLink 600 GB/s in both directions. DGX A100: 8 × 200 Gbit/s for 8 GPUs.
    "a100": _gpu("A100 SXM 80 GB", 80, {"float32": 19.5, "float16": 312, "bfloat16": 312}, 300, 25),
    # NVIDIA H100 data sheet (SXM, 80 GB): NVLink 900 GB/s in both directions. DGX H100: 8 × 400 Gbit/s for 8 GPUs.
    "h100": _gpu("H100 SXM 80 GB", 80, {"float32": 67, "float16": 989.4, "bfloat16": 989.4}, 450, 50),
    # NVIDIA H200 data sheet (SXM, 141 GB), DGX H200: arithmetic and links as for the H100.
    "h200": _gpu("H200 SXM 141 GB", 141, {"float32": 67, "float16": 989.4, "bfloat16": 989.4}, 450, 50),
}


def find_gpu(name: str) -> Machine:
    """Return the GPU of this name.

    Raises:
        ValueError: unknown GPU.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"plan: unknown GPU {name!r}. Expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]
