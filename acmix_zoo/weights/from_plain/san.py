"""Turn a plain SAN, pairwise or patchwise, into an ACmix-SAN that gives exactly the same logits.

`swin.py` explains how it trains.
"""

from __future__ import annotations

import math
from typing import Any

from torch import nn

from acmix_zoo.models.acmix_san import KERNELS, LAYERS, WIDTHS
from acmix_zoo.weights.from_plain.shared import (
    count_keys,
    create_with_state,
    first_keys,
    outer_arguments,
    plain_state,
    pooling_of,
    recorded_arguments,
)
from acmix_zoo.weights.read import Source

_NAMES = {layers: f"acmix_san{depth}" for depth, layers in LAYERS.items()}


def from_san(source: nn.Module | Source, **kwargs: Any) -> nn.Module:
    """Return an ACmix-SAN that gives the logits of a plain SAN, pairwise or patchwise, ready to be fine-tuned.

    Args:
        source: a SAN of this package, or the weights of a published one, as in `from_pvt`.
        kwargs: arguments of the network to change: num_classes, in_chans, drop_path_rate, ….

    Returns:
        A `SAN` in training mode, on the CPU.

    Raises:
        ValueError: the source is not a SAN.
    """
    state = plain_state(source)
    stages = range(count_keys(state, r"layer(\d+)\.0\.sam\.conv1\.weight$"))
    if not stages or "conv_in.weight" not in state:
        raise ValueError(f"from_san: the source has keys like {first_keys(state)}. Expected the weights of a SAN")
    layers = tuple(count_keys(state, rf"layer{i}\.(\d+)\.bn1\.weight$") for i in stages)
    arguments: dict[str, Any] = outer_arguments(state, "conv_in.weight", "fc.weight")
    arguments |= {} if layers in _NAMES else {"layers": layers}
    widths = tuple(len(state[f"conv{i}.weight"]) for i in stages)
    arguments |= {} if widths == WIDTHS else {"widths": widths}
    if "layer0.0.sam.conv_p.weight" in state:
        arguments["form"] = "pairwise"
        # Pairwise weights have the same shapes for all kernel sizes, so assume the published ones for bare weights.
        arguments |= {} if len(layers) == 5 else {"kernels": (3, *(7,) * (len(layers) - 1))}
        arguments |= recorded_arguments(source, "kernels")
    else:  # patchwise features are those of one position and of a k×k patch
        features = (len(state[f"layer{i}.0.sam.conv_w.0.weight"]) for i in stages)
        relations = (len(state[f"layer{i}.0.sam.conv1.weight"]) for i in stages)
        kernels = tuple(math.isqrt(f // r - 1) for f, r in zip(features, relations, strict=True))
        arguments |= {} if kernels == KERNELS else {"kernels": kernels}
    arguments |= pooling_of(source)
    return create_with_state(source, _NAMES.get(layers, "acmix_san10"), state, arguments, kwargs)
