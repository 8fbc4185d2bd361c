"""What ACmix costs in networks of other packages: the examples exist, and the recorded counts are theirs."""

from __future__ import annotations

from pathlib import Path

import pytest
import timm
from torch import nn

from acmix_zoo.bench.results import read_rows, write_csv
from tools import drop_in_costs
from tools.drop_in_costs import EXAMPLES, Cost, Example, Pair
from tools.speed_table import BENCHMARKS


def test_an_example_is_counted_before_and_after(tmp_path: Path) -> None:
    network = timm.create_model("resnet10t", num_classes=5)
    layer = network.layer4[0].conv1
    example = Example(
        "timm `resnet10t`", "`layer4.0.conv1`", 64, lambda: drop_in_costs.swap_copy(network, "layer4.0.conv1")
    )
    cost = drop_in_costs.measure(example, rounds=1)
    assert cost.layers == 1 and cost.params_before == sum(p.numel() for p in network.parameters())
    assert network.layer4[0].conv1 is layer, "the network before the replacement is unchanged"
    assert cost.params_after != cost.params_before and cost.macs_after != cost.macs_before
    assert cost.ms_before > 0 and cost.ms_after > 0
    write_csv([cost], tmp_path / "costs.csv")
    _, row = drop_in_costs.table(tmp_path / "costs.csv")
    assert row[:4] == ["timm `resnet10t`", "`layer4.0.conv1`", "1", "64×64"] and row[-1].endswith("×")


def test_networks_take_turns() -> None:
    calls: list[str] = []

    class Recorder(nn.Module):
        def __init__(self, name: str) -> None:
            super().__init__()
            self.name = name

        def forward(self, x: object) -> None:
            calls.append(self.name)

    drop_in_costs.measure_times(Pair(Recorder("a"), Recorder("b")), None, rounds=2)  # type: ignore[arg-type]
    assert calls == ["a", "b"] * 3


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda example: example.network)
def test_recorded_counts_are_those_of_the_example(example: Example) -> None:
    for package in ("ultralytics", "segmentation_models_pytorch"):
        pytest.importorskip(package)
    recorded = {(row.network, row.replaced): row for row in read_rows(BENCHMARKS / "drop_in.csv", Cost)}
    row = recorded[example.network, example.replaced]
    before, after = (sum(p.numel() for p in network.parameters()) for network in example.build())
    assert (row.params_before, row.params_after) == (before, after)
    assert row.layers == drop_in_costs.count_layers(example.build().after) > 0
