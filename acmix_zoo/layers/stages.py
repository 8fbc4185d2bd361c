"""Table 1 of the paper for a whole network: the cost of stage I (projections) and of stage II (both paths)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

from torch import Tensor, nn

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.cost import StageCounts, TwoStageLayer, forward_inputs


@dataclass(frozen=True)
class StageCost:
    """Parameters and MACs of both stages of one or more layers, for one image."""

    name: str
    params: StageCounts
    macs: StageCounts

    @property
    def first_dominates(self) -> bool:
        """Whether stage I has more parameters and more MACs than stage II."""
        return self.params.first > self.params.second and self.macs.first > self.macs.second


class StageTable(NamedTuple):
    """The cost of a network by layer and stage.

    Attributes:
        layers: one row per ACmix layer.
        total: the sum of these rows.
        rest: everything else in the network, as stage I of one row.
    """

    layers: list[StageCost]
    total: StageCost
    rest: StageCost


def stage_table(model: nn.Module, input_size: Sequence[int] | None = None) -> StageTable:
    """Return the cost of both stages of every ACmix layer in a network.

    Args:
        model, input_size: as in `complexity`.

    Raises:
        ValueError: the network has no ACmix layer, or no input size is known.
    """
    rows: dict[str, StageCost] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, TwoStageLayer):

            def count(layer: TwoStageLayer, args: Any, kwargs: Any, out: Tensor, name: str = name) -> None:
                macs = layer.stage_macs(*forward_inputs(layer, args, kwargs))
                earlier = [rows[name].macs] if name in rows else []  # the network runs the layer several times
                rows[name] = StageCost(name, layer.stage_params(), _total([*earlier, macs]))

            hooks.append(layer.register_forward_hook(count, with_kwargs=True))
    if not hooks:
        raise ValueError(
            f"{type(model).__name__} has no ACmix layers. Expected a network with layers that have two stages. Pass an "
            "ACmix network"
        )
    try:
        network = complexity(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    layers = list(rows.values())
    total = StageCost(
        "all two-stage layers", _total([row.params for row in layers]), _total([row.macs for row in layers])
    )
    rest = StageCost(
        "the rest of the network",
        StageCounts(network.params - sum(total.params), 0),
        StageCounts(network.macs - sum(total.macs), 0),
    )
    return StageTable(layers, total, rest)


def _total(counts: Sequence[StageCounts]) -> StageCounts:
    return StageCounts(sum(count.first for count in counts), sum(count.second for count in counts))
