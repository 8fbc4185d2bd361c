"""Make thop, the FLOP counter of Ultralytics, count ACmix layers by their definition, as `complexity` does.

Without these rules, thop counts the products of the fast backends, whose number depends on the size of the feature map.
Ultralytics measures small images and extrapolates to 640 pixels, so it would print several times the layer's cost.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from torch import nn

from acmix_zoo.layers.cost import TwoStageLayer


def register() -> None:
    """Register the rules with thop if it is installed. All layers must have been imported before."""
    try:
        from thop.profile import register_hooks  # type: ignore[import-untyped,import-not-found,unused-ignore]
    except ImportError:
        return
    rules: dict[type[nn.Module], Any] = register_hooks
    rules.update({layer: _count for layer in _subclasses(TwoStageLayer) if hasattr(layer, "definition_macs")})


def _count(layer: Any, inputs: Any, output: Any) -> None:
    """Count one call; a hook for thop. The definition includes inner layers, which have already counted themselves."""
    for part in layer.modules():
        if part is not layer and hasattr(part, "total_ops"):
            part.total_ops = part.total_ops * 0
    layer.total_ops += layer.definition_macs(inputs[0])


def _subclasses(base: type[nn.Module]) -> Iterator[type[nn.Module]]:
    for subclass in base.__subclasses__():
        yield subclass
        yield from _subclasses(subclass)
