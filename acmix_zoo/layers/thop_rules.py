"""Rules for thop, which Ultralytics counts with: an ACmix layer counts by its definition there, as in `complexity`.

Without them thop counts the products of the fast forms. How many there are depends on the map's size, so Ultralytics,
which measures small images and extrapolates to 640 pixels, prints several times the layer's cost.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.cost import definition_macs
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM


def _count(layer: Any, inputs: Any, output: Any) -> None:
    """A hook in thop's form. The definition includes the layers within, which have counted themselves before."""
    for part in layer.modules():
        if part is not layer and hasattr(part, "total_ops"):
            part.total_ops = part.total_ops * 0
    layer.total_ops += definition_macs(layer, inputs[0])


def register() -> None:
    """Add the rules to thop's own, if thop is installed."""
    try:
        from thop.profile import register_hooks  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return
    rules: dict[type[nn.Module], Any] = register_hooks
    rules.update(dict.fromkeys((ACmix2d, PairwiseSAM, PatchwiseSAM), _count))
