"""The paper's table 1 for a whole network: what projecting costs (stage I), and what is done with q, k and v (II)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from acmix_zoo.layers.complexity import complexity
from acmix_zoo.layers.cost import LAYERS, stage_macs, stage_params


@dataclass(frozen=True)
class Stages:
    """Parameters and MACs of one image, (stage I, stage II), of one layer or of many."""

    name: str
    params: tuple[int, int]
    macs: tuple[int, int]

    @property
    def first_dominates(self) -> bool:
        """Whether stage I has more of both than stage II."""
        return self.params[0] > self.params[1] and self.macs[0] > self.macs[1]


def stage_table(model: nn.Module, input_size: Sequence[int] | None = None) -> tuple[list[Stages], Stages, Stages]:
    """(every layer with two stages, their total, all else of the network as one row of (parameters, 0), (MACs, 0)).

    Args:
        model, input_size: as in `complexity`.

    Raises:
        ValueError: the network has no such layer, or names no input size.
    """
    rows: dict[str, Stages] = {}
    hooks = []
    for name, layer in model.named_modules():
        if isinstance(layer, LAYERS):

            def count(layer: nn.Module, args: tuple[Any, ...], out: Tensor, name: str = name) -> None:
                rows[name] = Stages(name, stage_params(layer), stage_macs(layer, *args))

            hooks.append(layer.register_forward_hook(count))
    if not hooks:
        raise ValueError(
            f"{type(model).__name__} has no layer with the two stages of ACmix, so there is nothing to show"
        )
    try:
        whole = complexity(model, input_size)
    finally:
        for hook in hooks:
            hook.remove()
    layers = list(rows.values())
    params, macs = ([sum(getattr(row, kind)[i] for row in layers) for i in (0, 1)] for kind in ("params", "macs"))
    total = Stages("all of them", (params[0], params[1]), (macs[0], macs[1]))
    rest = Stages("the rest of the network", (whole.params - sum(params), 0), (whole.macs - sum(macs), 0))
    return layers, total, rest
