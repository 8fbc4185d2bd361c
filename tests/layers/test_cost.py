"""Every ACmix layer states what it costs, and FLOP counters use it where they would misjudge the layer."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import nn

from acmix_zoo import layers
from acmix_zoo.layers import (
    ACmix2d,
    ContextAggregation,
    PairwiseSAM,
    PatchwiseSAM,
    ReducedACmix,
    RelativeAttention,
    TwoStageLayer,
    WindowACmix,
)
from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.convolution_path import ShiftConv
from acmix_zoo.layers.stages import stage_table

Build = Callable[[], TwoStageLayer]
# A layer that takes no `paths`, its input, and the terms of (stage I, stage II) for one image by hand.
OTHERS: dict[str, tuple[Build, torch.Tensor, tuple[int, int]]] = {
    "RelativeAttention": (
        lambda: RelativeAttention(8, 12, 16, heads=4, reach=3),
        torch.randn(2, 8, 5, 7),
        (35 * 8 * (2 * 12 + 16), 35 * (35 * (12 + 16) + (5 + 7) * 12)),
    ),
    "ContextAggregation": (
        lambda: ContextAggregation(8, 16, heads=2, stride=2),
        torch.randn(2, 8, 5, 7),
        (35 * 3 * 8 * 16, 12 * 16 * (25 + 2 * 35)),
    ),
    "ContextAggregation, static": (
        lambda: ContextAggregation(8, 16, heads=2, kernel=3, dynamic=False),
        torch.randn(2, 8, 5, 7),
        (35 * 8 * 16, 35 * 9 * 16),
    ),
}

# A layer, its inputs, and the terms of (stage I, attention, convolution) for one image by hand.
CASES: dict[str, tuple[Callable[..., TwoStageLayer], tuple, tuple[int, int, int]]] = {
    "ACmix2d": (
        lambda paths: ACmix2d(8, 16, stride=2, kernel_att=5, paths=paths),
        (torch.randn(2, 8, 7, 9),),
        (63 * 3 * 8 * 16, 20 * 2 * 25 * 16, 63 * 27 * 16 + 20 * 81 * 16),
    ),
    "WindowACmix": (
        lambda paths: WindowACmix(16, 4, (4, 4), (2, 2), paths=paths),
        (torch.randn(2, 7, 9, 16),),  # padded to 8×12
        (96 * 3 * 16 * 16, 96 * 2 * 16 * 16, 96 * (27 + 81) * 16),
    ),
    "ReducedACmix": (
        lambda paths: ReducedACmix(16, 4, 2, paths=paths),
        (torch.randn(2, 24, 16), (4, 6)),  # 6 patches
        (24 * 256 + 6 * 2 * 256 + 6 * 4 * 256, 2 * 24 * 6 * 16, 24 * (27 + 81) * 16),
    ),
    "PatchwiseSAM": (
        lambda paths: PatchwiseSAM(64, 3, paths=paths),  # relation 4, out 16, 2 channels of weights
        (torch.randn(2, 64, 5, 5),),
        (25 * 64 * (8 + 16), 25 * (9 * 16 + 2 * (4 * 10 + 9 * 2)), 25 * 16 * (8 + 9)),
    ),
    "PairwiseSAM": (
        lambda paths: PairwiseSAM(64, 3, paths=paths),
        (torch.randn(2, 64, 5, 5),),
        (25 * 64 * (8 + 16), 25 * (9 * 16 + 9 * 4 * (4 + 2 + 2)), 25 * 16 * (8 + 9)),
    ),
}


@pytest.mark.parametrize("paths", ["both", "attention", "convolution"])
@pytest.mark.parametrize("name", CASES)
def test_macs_by_hand(name: str, paths: str) -> None:
    build, inputs, (first, attention, convolution) = CASES[name]
    layer = build(paths=paths)
    second = (paths != "convolution") * attention + (paths != "attention") * convolution
    assert layer.stage_macs(*inputs) == (2 * first, 2 * second)  # two images
    if hasattr(layer, "definition_macs"):
        assert layer.definition_macs(*inputs) == 2 * (first + second)
        assert complexity(layer, inputs[0].shape[1:]).macs == first + second


@pytest.mark.parametrize("name", OTHERS)
def test_macs_of_layers_without_paths_by_hand(name: str) -> None:
    build, x, (first, second) = OTHERS[name]
    layer = build()
    assert layer.stage_macs(x) == (2 * first, 2 * second)
    assert complexity(layer, x.shape[1:]).macs == first + second


@pytest.mark.parametrize("name", [*CASES, *OTHERS])
def test_parameters_of_both_stages(name: str) -> None:
    layer = OTHERS[name][0]() if name in OTHERS else CASES[name][0](paths="both")
    others = sum(p.numel() for key, p in layer.named_parameters() if key.startswith("proj."))
    assert sum(layer.stage_params()) + others == sum(p.numel() for p in layer.parameters())
    assert all(any(key.startswith(start) for key, _ in layer.named_parameters()) for start in layer.STAGE_ONE)


def test_every_public_layer_is_tested_here() -> None:
    public = {name for name in layers.__all__ if issubclass(getattr(layers, name), TwoStageLayer)}
    assert public - {"TwoStageLayer"} == {name.partition(",")[0] for name in (*CASES, *OTHERS)}


def test_a_new_layer_needs_no_entry_in_a_list() -> None:
    """Its methods are enough for the counts of a network and for the table of the paper."""

    class Layer(TwoStageLayer):
        STAGE_ONE = ("weight",)

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x * self.weight.sum()

        def stage_macs(self, x: torch.Tensor) -> layers.cost.StageCounts:
            return layers.cost.StageCounts(1000, 10)

        def definition_macs(self, x: torch.Tensor) -> int:
            return 1010

    table = stage_table(nn.Sequential(Layer(), nn.Conv2d(3, 1, 1, bias=False)), (3, 2, 2))
    assert (table.total.macs, table.total.params) == ((1000, 10), (3, 0))
    assert (table.rest.macs.first, table.rest.params.first) == (12, 3)


def test_the_convolution_path_alone() -> None:
    path = ShiftConv(16, 4, kernel=5, stride=2)
    projections = torch.randn(2, 7, 9, 4, 12)
    expected = 63 * 3 * 25 * 16 + 20 * 625 * 16
    assert path.definition_macs(projections) == 2 * expected == 2 * path.macs(7, 9)
    assert complexity(path, projections.shape[1:]).macs == expected


def test_inputs_passed_by_keyword_count_the_same() -> None:
    class Network(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.reduced = ACmix2d(3, 16), ReducedACmix(16, 4, 2)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            x = self.layer(x=x)  # (B, 16, H, W)
            tokens = x.flatten(2).transpose(1, 2)  # (B, H·W, 16)
            return self.reduced(size=(x.shape[2], x.shape[3]), x=tokens)  # type: ignore[no-any-return]

    network = Network()
    layer = network.layer.stage_macs(torch.empty(1, 3, 4, 6))
    reduced = network.reduced.stage_macs(torch.empty(1, 24, 16), (4, 6))
    table = stage_table(network, (3, 4, 6))
    assert [row.macs for row in table.layers] == [layer, reduced]
    assert complexity(network, (3, 4, 6)).macs == sum(table.total.macs) + table.rest.macs.first


def test_a_layer_that_runs_twice_counts_twice() -> None:
    layer = ACmix2d(16, 16)
    once, twice = (stage_table(nn.Sequential(*[layer] * runs), (16, 4, 6)) for runs in (1, 2))
    assert twice.layers[0].macs == tuple(2 * macs for macs in once.layers[0].macs)
    assert twice.layers[0].params == once.layers[0].params and sum(twice.rest.macs) == 0
