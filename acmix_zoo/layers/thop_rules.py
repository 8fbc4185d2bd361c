"""Rules for thop, the FLOP counter of Ultralytics: count ACmix layers by their definition, as in `complexity`.

Without them, thop counts the products of the fast implementations, whose number depends on the size of the map.
Ultralytics measures small images and extrapolates to 640 pixels, so it would print several times the layer's cost.
"""

from __future__ import annotations

from typing import Any

from torch import nn

from acmix_zoo.layers.acmix2d import ACmix2d
from acmix_zoo.layers.cost import definition_macs
from acmix_zoo.layers.san import PairwiseSAM, PatchwiseSAM


def _count(layer: Any, inputs: Any, output: Any) -> None:
    """Count one call; a hook for thop. The definition includes inner layers, which have already counted themselves."""
    for part in layer.modules():
        if part is not layer and hasattr(part, "total_ops"):
            part.total_ops = part.total_ops * 0
    layer.total_ops += definition_macs(layer, inputs[0])


def register() -> None:
    """Register the rules with thop, if it is installed."""
    try:
        from thop.profile import register_hooks  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return
    rules: dict[type[nn.Module], Any] = register_hooks
    rules.update(dict.fromkeys((ACmix2d, PairwiseSAM, PatchwiseSAM), _count))
