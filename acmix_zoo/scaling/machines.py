"""GPUs and the links between them, as their makers state them: what `acmix_zoo.scaling.step` counts with.

Peaks are those without sparsity. A link's figure is one direction's, what a GPU can send while it receives as much.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

LINK_SHARE = 0.8
"""Assumed: the share of a link's stated rate that a long transfer reaches."""


@dataclass(frozen=True)
class Link:
    """A GPU's way to the next one: `rate` in bytes a second and direction, `latency` in seconds a message."""

    rate: float
    latency: float

    def seconds(self, size: float, steps: int) -> float:
        """For `size` bytes in `steps` messages one after the other."""
        return size / self.rate + steps * self.latency


@dataclass(frozen=True)
class Machine:
    """A kind of GPU: `memory` in bytes, `peak` in FLOP/s by dtype, `inner` within a node, `outer` between nodes."""

    name: str
    memory: float
    peak: dict[str, float]
    inner: Link
    outer: Link

    def with_network(self, gbit: float, nodes_of: int) -> Machine:
        """The same in nodes whose network cards together have so many Gbit/s, shared by `nodes_of` GPUs."""
        if gbit <= 0:
            raise ValueError(f"plan: a network of {gbit:g} Gbit/s a node was given; expected more than 0")
        return replace(self, outer=Link(LINK_SHARE * gbit / 8 * 1e9 / nodes_of, self.outer.latency))


def _gpu(name: str, memory: int, peak: dict[str, float], inner: float, outer: float) -> Machine:
    """GB, TFLOP/s, and GB/s of the links. Latencies are assumed: 3 µs a message by NVLink, 10 µs by the network."""
    flops = {dtype: 1e12 * value for dtype, value in peak.items()}
    return Machine(
        name, memory * 1e9, flops, Link(LINK_SHARE * inner * 1e9, 3e-6), Link(LINK_SHARE * outer * 1e9, 10e-6)
    )


# float32 is that of the plain units: torch multiplies matrices in TF32 only when it is told to.
GPUS = {
    # NVIDIA V100 data sheet (SXM2, 32 GB): NVLink 300 GB/s, both directions. DGX-1: 4 × 100 Gbit/s for 8 GPUs.
    "v100": _gpu("V100 SXM2 32 GB", 32, {"float32": 15.7, "float16": 125}, 150, 6.25),
    # NVIDIA A100 data sheet (SXM, 80 GB): NVLink 600 GB/s, both directions. DGX A100: 8 × 200 Gbit/s for 8 GPUs.
    "a100": _gpu("A100 SXM 80 GB", 80, {"float32": 19.5, "float16": 312, "bfloat16": 312}, 300, 25),
    # NVIDIA H100 data sheet (SXM, 80 GB): NVLink 900 GB/s, both directions. DGX H100: 8 × 400 Gbit/s for 8 GPUs.
    "h100": _gpu("H100 SXM 80 GB", 80, {"float32": 67, "float16": 989.4, "bfloat16": 989.4}, 450, 50),
    # NVIDIA H200 data sheet (SXM, 141 GB), DGX H200: arithmetic and links as H100.
    "h200": _gpu("H200 SXM 141 GB", 141, {"float32": 67, "float16": 989.4, "bfloat16": 989.4}, 450, 50),
}


def machine(name: str) -> Machine:
    """
    Raises:
        ValueError: an unknown GPU.
    """
    if name.lower() not in GPUS:
        raise ValueError(f"plan: GPU {name!r} is unknown; expected one of {', '.join(GPUS)}")
    return GPUS[name.lower()]
