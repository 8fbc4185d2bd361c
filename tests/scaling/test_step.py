"""The formulas of docs/scaling.md, computed by hand on a slow imaginary machine, and the data of real machines."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch

from acmix_zoo.scaling.activations import Activations
from acmix_zoo.scaling.machines import GPUS, LINK_FRACTION, Link, Machine
from acmix_zoo.scaling.step import BUCKET, Training, all_reduce, compute_seconds, plan_memory, plan_step

# 1 GFLOP/s, 1 kB/s within a node and 100 B/s between nodes, messages of 1 and 2 seconds.
SLOW = Machine("slow", 1e6, {"float32": 1e9, "bfloat16": 4e9}, Link(1e3, 1.0), Link(1e2, 2.0))
# The same, but a bucket takes 4 s on two GPUs.
BUCKETS = replace(SLOW, within_node=Link(BUCKET / 4, 0))
SMALL = Training(1000, 600, 10**6, Activations(50, 7), batch=10)
TEN_BUCKETS = 10 * BUCKET // 4


class TestAllReduce:
    def test_by_hand(self) -> None:
        assert all_reduce(800, 1, SLOW) == (0, 0)
        assert all_reduce(800, 2, SLOW) == (800, 0.8 + 2)  # half of it there and back, in two messages
        assert all_reduce(800, 4, SLOW) == pytest.approx((1200, 1.2 + 6))
        # Four nodes of two: 800 within the node; of the half that a GPU sums, 2 · 3/4 between the nodes.
        assert all_reduce(800, 8, SLOW, gpus_per_node=2) == pytest.approx((800 + 600, 0.8 + 2 + 6.0 + 6 * 2))

    @pytest.mark.parametrize("gpus_per_node", [1, 4, 8])
    def test_two_rings_send_as_much_as_one(self, gpus_per_node: int) -> None:
        for gpus in (8, 16, 64, 1024):
            sent = all_reduce(1e6, gpus, SLOW, gpus_per_node).sent
            assert sent == pytest.approx(2 * (gpus - 1) / gpus * 1e6)


class TestMemory:
    def test_ddp(self) -> None:
        one = plan_memory(SMALL, 1)
        assert tuple(vars(one).values()) == (4000, 2400, 4800, 0, 0, 50 + 70) and one.total == 11320
        assert plan_memory(replace(SMALL, ema=True), 1).ema == 4000
        assert plan_memory(replace(SMALL, states=1), 1).optimiser == 2400
        assert plan_memory(SMALL, 8) == replace(one, buffers=2400)

    def test_fsdp(self) -> None:
        sharded = plan_memory(replace(SMALL, strategy="fsdp", dtype="bfloat16", ema=True), 8)
        assert tuple(vars(sharded).values()) == (500, 300, 600, 500, 2000, 120)


def test_seconds_of_arithmetic() -> None:
    assert compute_seconds(SMALL, SLOW) == pytest.approx(3 * 2 * 1e6 * 10 / (0.3 * 1e9))
    assert compute_seconds(replace(SMALL, dtype="bfloat16"), SLOW) == pytest.approx(60e6 / (0.1 * 4e9))
    recomputed = replace(SMALL, micro_batches=3, forward_equivalents=4)
    assert compute_seconds(recomputed, SLOW, utilisation=0.5) == pytest.approx(240e6 / 0.5e9)
    assert compute_seconds(replace(SMALL, micro_batches=3), SLOW, throughput=15) == 2


class TestWaiting:
    """A GPU waits for the last bucket, and for what the backward pass, two thirds of the step, does not hide."""

    def test_ddp(self) -> None:
        many = replace(SMALL, trainable=TEN_BUCKETS)
        long, short = plan_step(many, BUCKETS, 2, throughput=0.1), plan_step(many, BUCKETS, 2, throughput=1)
        assert long.compute == 100 and long.waiting == pytest.approx(4)
        assert short.compute == 10 and short.waiting == pytest.approx(40 - 20 / 3)
        assert short.efficiency == pytest.approx(10 / (50 - 20 / 3)) and short.images == 20
        assert short.throughput == pytest.approx(20 / short.seconds)

    def test_only_the_last_accumulated_pass_hides_communication(self) -> None:
        step = plan_step(replace(SMALL, trainable=TEN_BUCKETS, micro_batches=2), BUCKETS, 2, throughput=1)
        assert step.compute == 20 and step.waiting == pytest.approx(40 - 20 / 3) and step.images == 40

    def test_fsdp(self) -> None:
        one = replace(SMALL, params=BUCKET // 4, trainable=BUCKET // 4, strategy="fsdp")
        step = plan_step(one, BUCKETS, 2, throughput=1)  # 10 s; two gathers and a scatter of half a bucket: 2 s each
        assert step.waiting == pytest.approx(4) and step.sent == pytest.approx(1.5 * BUCKET)
        ten = replace(one, params=TEN_BUCKETS, trainable=TEN_BUCKETS)
        assert plan_step(ten, BUCKETS, 2, throughput=1).waiting == pytest.approx((20 - 10 / 3) + (40 - 20 / 3))


@pytest.mark.parametrize("strategy", ["ddp", "fsdp"])
def test_more_gpus_are_less_efficient(strategy: str) -> None:
    training = Training(650_000, 600_000, 10**7, Activations(0, 10**6), batch=64, dtype="bfloat16", strategy=strategy)
    steps = [plan_step(training, GPUS["a100"], gpus) for gpus in (1, 2, 4, 8, 16, 64, 256, 1024)]
    assert steps[0].efficiency == 1 and steps[0].sent == 0
    for fewer, more in pairwise(steps):
        assert more.efficiency < fewer.efficiency and more.sent > fewer.sent and more.throughput > fewer.throughput
    limit = 8 * 600_000 if strategy == "ddp" else 2 * (2 * 650_000 + 600_000)
    assert 0.99 * limit < steps[-1].sent < limit


class TestMachines:
    def test_peaks_are_those_of_lightning(self) -> None:
        """Compare the GPUs for which Lightning's table has the peak without sparsity."""
        from lightning.fabric.utilities.throughput import _CUDA_FLOPS

        for name, key in (("v100", "v100 sxm"), ("a100", "a100"), ("h100", "h100 sxm")):
            for dtype, flops in GPUS[name].peak.items():
                assert flops == pytest.approx(_CUDA_FLOPS[key][getattr(torch, dtype)], rel=2e-3)

    def test_network(self) -> None:
        a100 = GPUS["a100"]
        assert a100.with_network(100, 8).between_nodes.rate == pytest.approx(LINK_FRACTION * 100e9 / 8 / 8)
        assert a100.with_network(8 * 200, 8).between_nodes.rate == pytest.approx(a100.between_nodes.rate)
